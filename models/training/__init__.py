"""Training on packed rows, by one process or by many."""
