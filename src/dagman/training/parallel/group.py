"""The processes of one run, as `torchrun` starts them: who they are, what they exchange, and how they end together.

Control messages go over gloo on any device; tensors on a CUDA device go over NCCL. A single process exchanges nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dagman.errors import DagmanError, RunError, SettingsError
from dagman.method.peers import Peers
from dagman.training.parallel.meeting import meet
from dagman.training.parallel.watch import REQUEUE, Watch

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostRankError(RunError):
    """Another process of the run ended or hangs: the run can be restarted as it is."""

    exit_code = REQUEUE


class Group(Peers):
    """This process and the others of its run.

    Attributes:
        rank, size: The number of this process, from 0, and how many there are.
        name: The name of this start of the ranks.
        communicated: Bytes that this process has contributed to exchanges since this was last set to 0.
        watch: Detects a rank that hangs; None for a single process.
    """

    def __init__(self, rank: int = 0, size: int = 1, name: str = "") -> None:
        self.rank, self.size, self.name = rank, size, name
        self.communicated = 0
        self.watch: Watch | None = None
        self.tensors: dist.ProcessGroup | None = None

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes the run."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def maximum(self, values: Tensor) -> Tensor:
        """The maximum over all processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of the ranks; each must hold the same number."""
        if self.size == 1:
            return rows
        rows = rows.contiguous()
        found = [torch.empty_like(rows) for _ in range(self.size)]
        self.count(rows)
        dist.all_gather(found, rows, group=self.tensors)
        return torch.cat(found)

    def count(self, values: Tensor) -> None:
        """Count the bytes of a tensor that is exchanged."""
        self.communicated += values.numel() * values.element_size()

    def share(self, value: T) -> list[T]:
        """The values of all processes, in the order of the ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Sums of plain numbers over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        self.count(total)
        dist.all_reduce(total)
        return total.tolist()

    def move(self, step: int, stage: int) -> None:
        """Note where this process is, for the watch if there is one; stage: an index of `watch.STAGES`."""
        if self.watch is not None:
            self.watch.move(step, stage)

    def broadcast(self, value: T) -> T:
        """The value of rank 0, in all processes."""
        return self.share(value)[0]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that succeeds in all processes or in none: the first rank that fails raises its error, the others exit."""
        failed: DagmanError | None = None
        try:
            yield
        except DagmanError as error:
            failed = error
        refusals = [rank for rank, refused in enumerate(self.share(failed is not None)) if refused]
        if not refusals:
            return
        if failed is not None and self.rank == refusals[0]:
            raise failed from None
        raise SystemExit(2)

    def compare(self, what: dict[str, Any]) -> None:
        """Check that all processes agree; what: values by the name used in the message.

        Raises:
            RunError: In all processes, naming the first rank that differs, and how.
        """
        found = self.share(what)
        for rank, other in enumerate(found):
            names = [name for name in what if other.get(name) != found[0].get(name)]
            if names:
                differing = ", ".join(f"{name} ({found[0].get(name)} and {other.get(name)})" for name in names)
                raise RunError(f"ranks 0 and {rank} differ in {differing}", do="Start every rank with the same command and version")

    def use_device(self, device: torch.device, timeout_s: float) -> None:
        """Set the device of exchanged tensors: those of a CUDA device need NCCL. Raises SettingsError if torch lacks it."""
        if self.size == 1:
            return
        if device.type == "cuda":
            if not dist.is_nccl_available():
                raise SettingsError(
                    f"{self.size} ranks on CUDA devices need NCCL, which this build of torch lacks",
                    where="train.device",
                    do="Install torch for CUDA on Linux, or set train.device=cpu",
                )
            torch.cuda.set_device(device)
            # Twice as long as the watch waits, so that the watch names the rank before NCCL aborts the process.
            self.tensors = dist.new_group(backend="nccl", timeout=datetime.timedelta(seconds=2 * timeout_s))

    def _reduce(self, values: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return values
        result = values.detach().clone()
        self.count(result)
        dist.all_reduce(result, op=operation, group=self.tensors)
        return result


@contextlib.contextmanager
def join_group(timeout_s: float) -> Iterator[Group]:
    """Join the group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets, until the block ends.

    A process without them, or with a WORLD_SIZE of 1, is on its own. timeout_s: seconds within which every rank must answer.

    Raises:
        SettingsError: The environment is incomplete, or this torch has no gloo.
        RunError: Another rank did not arrive, or was lost.
    """
    size = _read_number("WORLD_SIZE", 1)
    if size == 1:
        yield Group()
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise SettingsError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set", do="Start the ranks with torchrun")
    rank = _read_number("RANK", 0)
    if not (dist.is_available() and dist.is_gloo_available()):
        # There is no group yet in which one rank could report for all.
        if rank > 0:
            raise SystemExit(2)
        raise SettingsError(
            f"{size} ranks need gloo, which this build of torch lacks", do="Install another torch, or start one process"
        )
    limit = datetime.timedelta(seconds=2 * timeout_s)
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=limit))
        name = meet(store, rank, size, limit)
        dist.init_process_group("gloo", store=PrefixStore(name, store), rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {rank} of {size} could not meet the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({_first_line(error)})",
            do="Start all ranks, with the same rendezvous address",
        ) from None
    group = Group(rank, size, name)
    try:
        with _explain_loss(group):
            yield group
    finally:
        if group.watch is not None:
            group.watch.end()
        dist.destroy_process_group()


def start_watch(group: Group, timeout_s: float) -> None:
    """Let the processes of a group watch one another from now on."""
    if group.size == 1:
        return
    group.watch = Watch(group.rank, group.size, timeout_s, f"{platform.node()}, process {os.getpid()}", group.name)
    group.watch.publish()
    group.wait()
    group.watch.start()


@contextlib.contextmanager
def _explain_loss(group: Group) -> Iterator[None]:
    """Raise LostRankError if an exchange fails because another process ended or hangs."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(
            sign in text for sign in ("gloo", "Gloo", "Connection", "NCCL", "Timed out")
        ):
            raise
        raise LostRankError(
            f"rank {group.rank} lost another rank ({_first_line(error)})",
            do="See that rank's message, if it left one; start all ranks again to resume from the last checkpoint",
        ) from None


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    # gloo begins with the place in its source, and goes on with a guess at the cause.
    return re.sub(r"^\[\S+:\d+\] ", "", line).partition(". This is ")[0][:160]


def _read_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise SettingsError(f"{name} is {text!r} in the environment, which is not a number", do="Start the ranks with torchrun")
    return int(text)
