"""Runs a plan of pretrainings with several ranks each: real processes over gloo, forked from one that has torch loaded.

`python ranks.py PLAN.json`: a list of {"ranks", "source", "out", "method", "assignments"}, one after another.
`by_rank` gives single ranks other arguments. What each rank ended with is written to PLAN.json.outcomes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path


def find_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def act(run: dict, rank: int, port: str) -> str:
    """One rank of one pretraining: "" or what refused it."""
    from dagman.errors import DagmanError
    from dagman.training.pretraining import pretrain

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(run["ranks"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run = run | run.get("by_rank", {}).get(str(rank), {})
    try:
        pretrain(run["source"], run["out"], method=run.get("method"), assignments=run["assignments"])
    except DagmanError as error:
        return str(error)
    except SystemExit as silent:
        return f"exit {silent.code}"
    return ""


def main(path: Path) -> None:
    plan = json.loads(path.read_text())
    import dagman.training.pretraining  # noqa: F401  (before the fork, so that it is loaded once)

    for number in sorted({run["ranks"] for run in plan}):
        runs = [run for run in plan if run["ranks"] == number]
        ports = [find_port() for _ in runs]
        children = []
        for rank in range(number):
            child = os.fork()
            if child == 0:
                outcomes = [act(run, rank, port) for run, port in zip(runs, ports, strict=True)]
                Path(f"{path}.{number}.{rank}").write_text(json.dumps(outcomes))
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
