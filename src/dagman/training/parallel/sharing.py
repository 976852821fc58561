"""How the views of a step are divided among ranks: `train.batch` counts those of all ranks."""

from __future__ import annotations

import math

from dagman.errors import RunError, SettingsError
from dagman.method.networks import Network
from dagman.settings import Settings
from dagman.training.parallel.group import Group


def check_sharing(settings: Settings, given: frozenset[str], ranks: int, scans: int) -> None:
    """Check that several ranks can divide each step among them.

    Raises:
        SettingsError: The pairs of a step, or the given micro-batch, cannot be divided evenly.
        RunError: There are fewer scans than ranks.
    """
    if ranks == 1:
        return
    batch, micro = settings.train.batch, int(settings.train.micro_batch)
    if scans < ranks:
        raise RunError(
            f"{ranks} ranks are more than the {scans} scans that are large enough for a view", do=f"Start at most {scans} ranks"
        )
    if batch % (2 * ranks):
        below, above = batch // (2 * ranks) * 2 * ranks, (batch // (2 * ranks) + 1) * 2 * ranks
        fitting = " or ".join(f"train.batch={size}" for size in (below, above) if size)
        raise SettingsError(
            f"train.batch = {batch} is {batch // 2} pairs of views, which {ranks} ranks cannot share evenly",
            do=f"Set {fitting}, or use another number of ranks",
        )
    share = batch // ranks
    if "train.micro_batch" in given and micro < share and share % micro:
        raise SettingsError(
            f"train.micro_batch = {micro} does not divide the {share} views of each of {ranks} ranks",
            do="Set train.micro_batch to auto, or to a divisor",
        )


def list_own_pairs(pairs: int, rank: int, ranks: int) -> range:
    """The pairs of a step that a rank reads and trains on: slices of equal size, in the order of the ranks."""
    share = pairs // ranks
    return range(rank * share, (rank + 1) * share)


def size_micro_batch(settings: Settings, ranks: int) -> int:
    """Pairs of views per micro-batch of a rank: at most those of `train.micro_batch`, in parts of nearly equal size."""
    largest = int(settings.train.micro_batch) // 2
    if ranks == 1:
        return largest
    share = settings.train.batch // 2 // ranks
    return math.ceil(share / math.ceil(share / largest))


def describe_ranks(settings: Settings, student: Network, group: Group, device: str) -> list[str]:
    """A line on how a step is divided among ranks, and the size of its gradients; none for a single process."""
    if group.size == 1:
        return []
    share = settings.train.batch // group.size
    parts = math.ceil(share / (2 * size_micro_batch(settings, group.size)))
    gradients = sum(parameter.numel() * 4 for parameter in student.parameters() if parameter.requires_grad)
    backend = "NCCL" if device.startswith("cuda") else "gloo"
    return [
        f"ranks: {group.size} over {backend}, {share} views per step each, in {parts} part{'s' if parts > 1 else ''}; "
        f"gradients of {gradients / 2**20:.1f} MiB are summed once per step"
    ]
