"""Runs a plan with several ranks a piece: real processes over gloo, forked from one that has torch and dagman loaded.

`python ranks.py PLAN.json`: a list of jobs. Those of a number of ranks share their processes and run one after another:

- {"ranks", "source", "out", "method", "assignments"}: a pretraining; "by_rank" gives single ranks other arguments, "without":
  "gloo" is a torch that lacks it, "version" another dagman;
- {"ranks", "source", "out", "steps": {case: [method, assignments]}}: the training step alone, case by case;
- {..., "alone": true}: a pretraining in processes of its own, beside all others; "torchrun": options, started by torchrun;
- {..., "warn": [rank, step]}: Slurm's warning comes to a rank; "nan": [rank, step]: its losses are not finite;
  "kill": [[rank, step], ...], which rank is killed at which step at the n-th start; "hang": [rank, step, "stopped" or "reading"].

What each rank ended with is written to PLAN.json.<number>.<rank>, what one alone wrote to stderr to <out>.<rank>.txt.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def find_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def set_rank(rank: int, ranks: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def train(job: dict) -> str:
    """One rank of one pretraining: "" or what ended it."""
    from dagman.errors import DagmanError
    from dagman.training.pretraining import pretrain

    job = job | job.get("by_rank", {}).get(os.environ.get("RANK"), {})
    try:
        with disturb(job):
            run = pretrain(job["source"], job["out"], method=job.get("method"), assignments=job["assignments"])
    except DagmanError as error:
        return str(error)
    except SystemExit as silent:
        return f"exit {silent.code}"
    return run.stopped or ""


@contextlib.contextmanager
def disturb(job: dict) -> Iterator[None]:
    """What a job has that a user's has not: another version, a torch without gloo, a rank that dies or hangs."""
    import torch
    import torch.distributed as dist

    from dagman.training import accumulation
    from dagman.training.learner import Learner
    from dagman.training.start import identity

    rank, before = int(os.environ["RANK"]), (identity.__version__, dist.is_gloo_available, Learner.advance, Learner.draw_pairs)
    identity.__version__ = job.get("version", identity.__version__)
    if job.get("without") == "gloo":
        dist.is_gloo_available = lambda: False

    def interrupt(plain: Callable, act: Callable[[], object], due: int) -> Callable:
        def run(self, what, step, *rest):
            if step == due:
                act()
            return plain(self, what, step, *rest)

        return run

    number = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    for victim, step in job.get("kill", [])[number : number + 1]:
        if rank == victim:
            Learner.advance = interrupt(Learner.advance, lambda: os.kill(os.getpid(), signal.SIGKILL), step)
    if job.get("hang", [None])[0] == rank:
        _, step, how = job["hang"]
        if how == "stopped":
            Learner.advance = interrupt(Learner.advance, lambda: os.kill(os.getpid(), signal.SIGSTOP), step)
        else:
            Learner.draw_pairs = interrupt(Learner.draw_pairs, threading.Event().wait, step)
    if job.get("warn", [None])[0] == rank:
        Learner.advance = interrupt(Learner.advance, lambda: os.kill(os.getpid(), signal.SIGUSR1), job["warn"][1])
    if job.get("nan", [None])[0] == rank:
        losses = accumulation.student_losses

        def spoil() -> None:
            accumulation.student_losses = lambda *rest: {name: value * torch.nan for name, value in losses(*rest).items()}

        def mend() -> None:
            accumulation.student_losses = losses

        Learner.advance = interrupt(interrupt(Learner.advance, spoil, job["nan"][1]), mend, job["nan"][1] + 1)
    try:
        yield
    finally:
        identity.__version__, dist.is_gloo_available, Learner.advance, Learner.draw_pairs = before


def take_steps(job: dict) -> str:
    """The steps of each case by this rank, alone or with others; rank 0 writes what came of them, and whether all agree."""
    from safetensors.torch import save_file

    from dagman.settings import load_settings, resolve_settings
    from dagman.store.manifest import Store
    from dagman.training.learner import Learner
    from dagman.training.parallel.group import join_group
    from dagman.training.parallel.sharing import list_own_pairs
    from dagman.training.views import ViewDataset, find_usable

    store = Store(job["source"])
    with join_group(300) as group:
        for case, (method, assignments) in job["steps"].items():
            settings = resolve_settings(load_settings("tiny", method, assignments=assignments)[0])[0]
            usable, _ = find_usable({row.id: row.shape for row in store.rows}, settings.view)
            train, own = settings.train, list_own_pairs(settings.train.batch // 2, group.rank, group.size)
            dataset = ViewDataset(store, usable, settings.view, train.batch, settings.seed, train.steps, own)
            # One process computes all windows, so that ranks which skip hidden ones are compared with that.
            learner = Learner(settings, device="cpu", precision="fp32", group=group, skip_hidden=group.size > 1)
            rows, first = [], {}
            with learner.joined():
                for step in range(train.steps):
                    rows.append(learner.read(learner.advance(learner.draw_pairs(dataset[step], step, own), step)))
                    if step == 0:
                        # After one step AdamW's first moment is the gradient.
                        moments = learner.copy().optimizer.items()
                        first = {key: value.clone() for key, value in moments if key.startswith("exp_avg:")}
            held = {**first, **{f"targets.{key}": value for key, value in learner.targets.state()[0].items()}}
            weights = [value.double().sum().item() for value in learner.student.state_dict().values()]
            alike = all(other == (weights, rows) for other in group.share((weights, rows)))
            if group.writes:
                Path(job["out"]).mkdir(parents=True, exist_ok=True)
                save_file({key: value.contiguous() for key, value in held.items()}, f"{job['out']}/{case}.safetensors")
                Path(f"{job['out']}/{case}.json").write_text(json.dumps({"rows": rows, "alike": alike}))
    return ""


def fork(act: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def run_in_turn(jobs: list[dict], path: Path) -> None:
    """All jobs of a number of ranks, each rank a process."""
    ranks, ports = jobs[0]["ranks"], [find_port() for _ in jobs]

    def act(rank: int) -> None:
        outcomes = []
        for job, port in zip(jobs, ports, strict=True):
            set_rank(rank, ranks, port)
            outcomes.append(take_steps(job) if "steps" in job else train(job))
        Path(f"{path}.{ranks}.{rank}").write_text(json.dumps(outcomes))

    for child in [fork(lambda rank=rank: act(rank)) for rank in range(ranks)]:
        os.waitpid(child, 0)


def run_alone(job: dict) -> None:
    """A job in processes of its own: what it writes to stderr, and the exit codes of its ranks, 0 for one that hung."""
    if "torchrun" in job:
        from torch.distributed.run import main as torchrun

        _redirect(f"{job['out']}.torchrun.txt")
        torchrun([*job["torchrun"], "--start-method=fork", "--run-path", __file__, "--one", json.dumps(job)])
        return
    port = find_port()

    def act(rank: int) -> None:
        _redirect(f"{job['out']}.{rank}.txt")
        set_rank(rank, job["ranks"], port)
        train(job)

    children = [fork(lambda rank=rank: act(rank)) for rank in range(job["ranks"])]
    hung = job["hang"][0]
    codes = {rank: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for rank, child in enumerate(children) if rank != hung}
    os.kill(children[hung], signal.SIGKILL)
    os.waitpid(children[hung], 0)
    Path(f"{job['out']}.codes.json").write_text(json.dumps(codes))


def _redirect(path: str) -> None:
    with open(path, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def main(path: Path) -> None:
    plan = json.loads(path.read_text())
    # Before the fork, so that all is loaded once; torch loads the last ones, which take seconds, when it first needs them.
    for name in ("dagman.training.pretraining", "torch._dynamo", "torch.utils.tensorboard", "torch.distributed.run"):
        importlib.import_module(name)

    beside = [fork(lambda job=job: run_alone(job)) for job in plan if job.get("alone")]
    for number in (1, 2, 3):
        if jobs := [job for job in plan if job["ranks"] == number and not job.get("alone")]:
            run_in_turn(jobs, path)
    for child in beside:
        os.waitpid(child, 0)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        told = train(json.loads(sys.argv[2]))
        if told:
            print(told, file=sys.stderr)
        sys.exit(1 if told else 0)
    main(Path(sys.argv[1]))
