"""Runs to be killed, in processes of their own that have imported everything before they begin."""

import os
import sys
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["seqmill.cli.stages", "seqmill.models", "seqmill.pipeline.model_steps", "seqmill.pipeline.run"]


def start(config: Path) -> BaseProcess:
    """Begin `seqmill run` in the folder of a configuration, as the leader of a process group.

    All are forked from one server that imports once: that takes more of a core than such a run of data does.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    victim = context.Process(target=_run, args=(config,))
    victim.start()
    return victim


def _run(config: Path) -> None:
    from seqmill.cli import main

    os.setsid()
    os.chdir(config.parent)
    sys.argv = ["seqmill", "run", str(config), "--workers", "1", "--quiet"]
    main()
