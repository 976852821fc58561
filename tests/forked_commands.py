"""`python forked_commands.py`: a process that has the libraries loaded, and forks one for each command line that it reads as JSON.

A command of a test is a process of its own so, with its own output, environment, signals and end, without seconds of imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback

# What most commands import before they begin; what is not installed is left out. None of these starts a thread: a fork is whole.
_LOADED = (
    "dagman.cli.tasks.printing",
    "dagman.cli.training.planning",
    "dagman.encoder.embedding",
    "dagman.reports.run.run_page",
    "dagman.scans.inspection",
    "dagman.store.writer",
    "dagman.tasks.classify.classification",
    "dagman.tasks.cluster.clustering",
    "dagman.tasks.outcome.time_to_event",
    "dagman.tasks.segment.segmentation",
    "dagman.training.pretraining",
    "matplotlib.figure",
    "rich.progress",
    "SimpleITK",
    "torch.utils.tensorboard",
)


def run_command(asked: dict) -> int:
    """The command line in this process, which was forked for it; its exit code."""
    for stream, path in ((1, asked["stdout"]), (2, asked["stderr"])):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        import coverage

        coverage.process_startup()  # type: ignore[no-untyped-call]
    from dagman.cli import progress
    from dagman.cli.application import main

    # As in the fixture `call_dagman`.
    progress.FIRST = float("inf")
    sys.argv = ["dagman", *asked["words"]]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> int:
    """Fork for every line of stdin, and answer each with its exit code; ends with its input. A fork returns its own code."""
    # Out of the way of the commands, whose own input is empty.
    lines, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for name in _LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in lines:
        child = os.fork()
        if child == 0:
            return run_command(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve())
