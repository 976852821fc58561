"""One training step (paper 3.1 and 3.2), to be laid beside METHOD.md.

P pairs of views a micro-batch, B = 2P views (all u, then all v), N units, K prototypes; hidden: True = masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dagman.method.losses import cross_entropy, masked_l1
from dagman.method.masking import Counts, Masking, expand_units
from dagman.method.networks import UNIT, Look, Network, unit_grid
from dagman.method.noise import PATCHES_PER_UNIT, drop_input
from dagman.method.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method preset, composed (METHOD, Method presets): what is masked, how the teacher is dimmed, what is weighed."""

    masking: Masking
    counts: Counts
    needs_attention: bool
    attention_from: str
    noise: float
    granularity: str
    weights: dict[str, float]
    student_temperature: float
    symmetric: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """P pairs of overlapping crops u, v and everything that is drawn for them; row i of v belongs to row i of u."""

    u: Float[Tensor, "P 1 X Y Z"]
    v: Float[Tensor, "P 1 X Y Z"]
    masking: Float[Tensor, "B N D"]
    noise: Float[Tensor, "B M"]
    drop: Float[Tensor, "L B"]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The weighted sum and its parts, detached; `temperatures` are the tau_t used."""

    total: Tensor
    parts: dict[str, Tensor]
    temperatures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Advice:
    hidden: Bool[Tensor, "B N"]
    look: Look


def pretraining_step(
    student: Network, teacher: Network | None, pairs: Sequence[Pair], method: Method, targets: Targets, scheduled_temperature: float
) -> Losses:
    """Losses of one step over micro-batches, and their gradients: no optimiser, no logging, no rank.

    The teacher looks at every micro-batch first, so that centres and Sinkhorn see the whole step; then each
    micro-batch passes through the student and adds its share of the gradient.
    """
    # ------------------------------------------------------------------ teacher: masks from the clean view, targets from the noisy
    with torch.no_grad():
        advice = [ask_teacher(teacher, pair, method) for pair in pairs]
    goals, temperatures = set_goals(targets, [a.look for a in advice], method.symmetric, scheduled_temperature)

    # ------------------------------------------------------------------ student: restores what is hidden, agrees with the teacher
    sums: dict[str, Tensor] = {}
    for number, (pair, told) in enumerate(zip(pairs, advice, strict=True)):
        count = len(pair.u)
        views = torch.cat([pair.u, pair.v]) if method.symmetric else pair.u
        hidden = told.hidden[: len(views)]
        grid = unit_grid(tuple(views.shape[2:]))
        s = student(views, expand_units(hidden, grid, PATCHES_PER_UNIT), hidden, pair.drop[:, : len(views)])
        # AITD and GITD compare with the other view: the teacher's rows v, u for the student's u, v.
        crossed = torch.arange(2 * count, device=views.device).roll(-count)[: len(views)]
        tau = method.student_temperature
        parts: dict[str, Tensor] = {}
        if method.weights["amip"]:
            parts["amip"] = masked_l1(s.reconstruction, views, expand_units(hidden, grid, UNIT))  # Eq. 3
        if method.weights["ampd"]:
            parts["ampd"] = cross_entropy(goals["ampd"][number], s.patches, tau)  # Eq. 4, masked units, same view
        if method.weights["aitd"]:
            parts["aitd"] = cross_entropy(goals["aitd"][number][crossed], s.cls, tau)  # Eq. 2
        if method.weights["gitd"]:
            parts["gitd"] = cross_entropy(goals["gitd"][number][crossed], s.image, tau)  # Eq. 5
        total = torch.stack([method.weights[name] * value for name, value in parts.items()]).sum()
        # Outside autocast, which would redo the float32 islands' products in bfloat16; other products keep their forward's type.
        with torch.autocast(views.device.type, enabled=False):
            (total / len(pairs)).backward()
        for name, value in {**parts, "total": total}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / len(pairs)
    return Losses(total=sums.pop("total"), parts=sums, temperatures=temperatures)


def ask_teacher(teacher: Network | None, pair: Pair, method: Method) -> _Advice:
    """The mask of each view from the teacher's attention (3.1), and the noisy teacher's logits (3.2)."""
    views = torch.cat([pair.u, pair.v])
    grid = unit_grid(tuple(views.shape[2:]))
    if teacher is None:
        return _Advice(hidden=method.masking(None, grid, method.counts, pair.masking), look=Look())
    dropped = drop_input(pair.noise, grid, method.noise, method.granularity)
    stages = teacher.encoder(views, dropped) if len(teacher.projectors) else None
    attention = None
    if method.needs_attention:
        seen = None if method.attention_from == "clean" else dropped
        # Where both are taken from the same input, one pass serves both.
        attention = teacher.attend(views, seen) if stages is None or seen is not dropped else teacher.attend_to(stages)
    hidden = method.masking(attention, grid, method.counts, pair.masking)
    if stages is None:
        return _Advice(hidden=hidden, look=Look())
    # Only the views the student will see have targets for their masked units.
    wanted = hidden if method.symmetric else torch.cat([hidden[: len(pair.u)], torch.zeros_like(hidden[len(pair.u) :])])
    return _Advice(hidden=hidden, look=teacher.say(stages, wanted))


def set_goals(
    targets: Targets, looks: Sequence[Look], symmetric: bool, scheduled_temperature: float
) -> tuple[dict[str, list[Tensor]], dict[str, float]]:
    """P_t of each projector, split back into micro-batches, from the rows of the whole step; and the tau_t used."""
    goals: dict[str, list[Tensor]] = {}
    temperatures: dict[str, float] = {}
    for name, field in (("ampd", "patches"), ("aitd", "cls"), ("gitd", "image")):
        rows = [getattr(look, field) for look in looks]
        if any(r is None for r in rows):
            continue
        # All u, then all v: a queue keeps the last rows, and which those are must not depend on how the step is cut.
        halves = 2 if symmetric or name != "ampd" else 1
        ordered = [half for which in zip(*(r.chunk(halves) for r in rows), strict=True) for half in which]
        probabilities, temperatures[name] = targets.sharpen(name, torch.cat(ordered).float(), scheduled_temperature)
        told = probabilities.split([len(half) for half in ordered])
        goals[name] = [torch.cat(told[number :: len(rows)]) for number in range(len(rows))]
    return goals, temperatures
