"""Runs a plan with several ranks a piece: real processes over gloo, forked from one that has torch and dagman loaded.

`python ranks.py PLAN.json`: a list of jobs. Those of a number of ranks share their processes and run one after another:

- {"ranks", "source", "out", "method", "assignments"}: a pretraining; "by_rank" gives single ranks other arguments, "without":
  "gloo" is a torch that lacks it, "version" another dagman, "unshared_s" the wait for a run folder that is not there;
- {"relay": [ranks, ...], "source", "out", "method", "assignments"}: a pretraining that is killed after each step and gone on by the
  next number of ranks, beside one that is not; <out>.json says how far apart their checkpoints are; "unwatched": without monitors;
- {..., "alone": true}: a pretraining in processes of its own, beside all others; "torchrun": options, started by torchrun, in
  forked processes if these name no other start method;
- {..., "warn": [rank, step]}: Slurm's warning comes to a rank; "warn_parent": SIGTERM to what started it;
  "nan": [rank, step]: its losses are not finite;
  "kill": [[rank, step], ...], which rank is killed at which step at the n-th start; "hang": [rank, step, "stopped" or "reading"].

What each rank ended with is written to PLAN.json.<number>.<rank>, what one alone wrote to stderr to <out>.<rank>.txt.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def find_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def set_rank(rank: int, ranks: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def train(job: dict) -> str:
    """One rank of one pretraining: "" or what ended it."""
    from dagman.errors import DagmanError
    from dagman.training import pretraining
    from dagman.training.pretraining import pretrain

    job = job | job.get("by_rank", {}).get(os.environ.get("RANK"), {})
    pretraining.UNSHARED_S = job.get("unshared_s", 60.0)
    try:
        with disturb(job):
            run = pretrain(job["source"], job["out"], method=job.get("method"), assignments=job["assignments"])
    except DagmanError as error:
        return str(error)
    except SystemExit as silent:
        return f"exit {silent.code}"
    return run.stopped or ""


def die(*, settled: bool) -> None:
    """SIGKILL; settled: once what is being written has been."""
    if settled:
        settle()
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def disturb(job: dict) -> Iterator[None]:
    """What a job has that a user's has not: another version, a torch without gloo, a rank that dies or hangs."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from dagman.training import accumulation
    from dagman.training.learner import Learner
    from dagman.training.start import identity
    from dagman.training.trainer import Trainer

    rank, before = int(os.environ["RANK"]), (identity.__version__, dist.is_gloo_available, dist.destroy_process_group)
    evaluate = Trainer._evaluate
    methods = {name: getattr(Learner, name) for name in ("advance", "draw_pairs", "read")}
    identity.__version__ = job.get("version", identity.__version__)
    if job.get("without") == "gloo":
        dist.is_gloo_available = lambda: False

    def interrupt(plain: Callable, act: Callable[[], object], due: int) -> Callable:
        def run(self, what, step, *rest):
            if step == due:
                act()
            return plain(self, what, step, *rest)

        return run

    def read_alike(self, outcome):
        row = methods["read"](self, outcome)
        weights = [value.double().sum().item() for value in self.student.state_dict().values()]
        assert all(other == (weights, row) for other in self.group.share((weights, row))), f"rank {rank} differs: {row}"
        return row

    def end_group(*rest) -> None:
        # One that outlives the group hangs, now and then: the error that another rank's end raised holds its frames.
        replicas = [one for one in gc.get_objects() if type(one) is DistributedDataParallel]
        assert not any("reducer" in vars(one) for one in replicas), "a reducer outlives the group"
        before[2](*rest)

    if job.get("unwatched"):
        # Rank 0 alone looks at the validation views, which takes longer than a step.
        Trainer._evaluate = lambda *rest: None
    if job.get("alike"):
        Learner.read, dist.destroy_process_group = read_alike, end_group
    number = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    for victim, step in job.get("kill", [])[number : number + 1]:
        if rank == victim:
            Learner.advance = interrupt(Learner.advance, lambda: die(settled=job.get("settled", False)), step)
    if job.get("hang", [None])[0] == rank:
        _, step, how = job["hang"]
        if how == "stopped":
            Learner.advance = interrupt(Learner.advance, lambda: os.kill(os.getpid(), signal.SIGSTOP), step)
        else:
            Learner.draw_pairs = interrupt(Learner.draw_pairs, threading.Event().wait, step)
    if job.get("warn", [None])[0] == rank:
        Learner.advance = interrupt(Learner.advance, lambda: os.kill(os.getpid(), signal.SIGUSR1), job["warn"][1])
    if job.get("warn_parent", [None])[0] == rank:
        Learner.advance = interrupt(Learner.advance, lambda: os.kill(os.getppid(), signal.SIGTERM), job["warn_parent"][1])
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
        identity.__version__, dist.is_gloo_available, dist.destroy_process_group = before
        Trainer._evaluate = evaluate
        for name, method in methods.items():
            setattr(Learner, name, method)


def run_relay(job: dict) -> None:
    """Each leg takes one more step and is killed, the last or the first rank in turn; the last leg comes to the end."""
    alone, out = {**job, "out": f"{job['out']}-one"}, job["out"]
    codes = [launch({**alone, "ranks": 1})]
    for leg, ranks in enumerate(job["relay"]):
        victim = (ranks - 1) * (leg % 2)
        kill = {"kill": [[victim, leg + 1]]} if leg + 1 < len(job["relay"]) else {}
        codes.append(launch({**job, **kill, "ranks": ranks, "settled": True, "alike": True}))
    apart = {}
    for step in range(1, len(job["relay"]) + 1):
        ours, theirs = (Path(one, "checkpoints", f"step-{step:06d}") for one in (out, alone["out"]))
        apart[step] = compare_checkpoints(ours, theirs)
    Path(f"{out}.json").write_text(json.dumps({"codes": codes, "apart": apart}))
    for one in (out, alone["out"]):
        shutil.rmtree(f"{one}/checkpoints")


def launch(job: dict) -> list[int]:
    """A pretraining by ranks of its own; their exit codes, negative for a signal."""
    port = find_port()

    def act(rank: int) -> int:
        set_rank(rank, job["ranks"], port)
        return 75 if train(job) else 0

    children = [fork(lambda rank=rank: act(rank)) for rank in range(job["ranks"])]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def compare_checkpoints(ours: Path, theirs: Path) -> dict[str, float]:
    """By tensor, how far the worst element is off beyond a thousandth of itself, as a share of the tensor's largest."""
    return {key: _measure_distance(values, other) for key, values, other in _pair_tensors(ours, theirs)}


def _pair_tensors(ours: Path, theirs: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    before = [path.with_name(f"step-{int(path.name[5:]) - 1:06d}") for path in (ours, theirs)]
    for name in ("student", "teacher", "heads", "optimizer"):
        found, others = (load_file(path / f"{name}.safetensors") for path in (ours, theirs))
        assert found.keys() == others.keys(), name
        earlier = [load_file(path / f"{name}.safetensors") if path.exists() and name == "optimizer" else {} for path in before]
        for key, values in found.items():
            pair = values, others[key]
            if key.startswith("exp_avg:"):
                # AdamW's first moment is 0.9 of the one before and a tenth of the gradient.
                pair = tuple(10 * (one - 0.9 * early.get(key, 0.0)) for one, early in zip(pair, earlier, strict=True))
            if not key.startswith("exp_avg_sq:"):
                yield f"{name}.{key}", *pair


def _measure_distance(values: np.ndarray, other: np.ndarray) -> float:
    other = other.astype(np.float64)
    off = np.abs(values - other) - 1e-3 * np.abs(other)
    return float(off.max(initial=0.0) / np.abs(other).max(initial=1e-6))


def fork(act: Callable[[], int | None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = act() or 0
            settle()
        finally:
            os._exit(code)
    return child


def settle() -> None:
    """Let what is being written come to its end, as Python does when it ends by itself."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()


def run_in_turn(jobs: list[dict], path: Path) -> None:
    """All jobs of a number of ranks, each rank a process."""
    ranks, ports = jobs[0]["ranks"], [find_port() for _ in jobs]

    def act(rank: int) -> None:
        outcomes = []
        for job, port in zip(jobs, ports, strict=True):
            set_rank(rank, ranks, port)
            outcomes.append(train(job))
        Path(f"{path}.{ranks}.{rank}").write_text(json.dumps(outcomes))

    for child in [fork(lambda rank=rank: act(rank)) for rank in range(ranks)]:
        os.waitpid(child, 0)


def run_alone(job: dict) -> None:
    """A job in processes of its own: what it writes to stderr, and the exit codes of its ranks, 0 for one that hung."""
    if "torchrun" in job:
        from torch.distributed.run import main as torchrun

        _redirect(f"{job['out']}.torchrun.txt")
        torchrun(["--start-method=fork", *job["torchrun"], "--run-path", __file__, "--one", json.dumps(job)])
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
    for number in (2, 3):
        if jobs := [job for job in plan if job.get("ranks") == number and not job.get("alone")]:
            run_in_turn(jobs, path)
    for job in plan:
        if "relay" in job:
            run_relay(job)
    for child in beside:
        os.waitpid(child, 0)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        told = train(json.loads(sys.argv[2]))
        if told:
            print(told, file=sys.stderr)
        sys.exit(1 if told else 0)
    main(Path(sys.argv[1]))
