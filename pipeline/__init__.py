"""Sources, work units, stages, executors, configuration and the run report."""
