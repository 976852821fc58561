"""The curves of a run, each with an explanation, its normal range and its warning sign (METHOD, Monitors)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagman.reports.figures import Series, draw_curves, encode_png
from dagman.reports.page import Figure
from dagman.reports.style import BLUE, GREEN, INK, ORANGE, PURPLE
from dagman.settings import Settings

COLORS = {"amip": INK, "ampd": BLUE, "aitd": ORANGE, "gitd": GREEN}
"""Colour of each loss and its projector on the whole page."""
_NAMES = {"ampd": "patch", "aitd": "[CLS]", "gitd": "view"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A plot of one or more columns over steps, with its caption.

    Attributes:
        title: Title of the plot.
        y: Label of the y axis.
        keys: Names of the lines by column.
        what: What is shown.
        normal: The normal range.
        abnormal: The warning sign.
        references: Named horizontal lines.
        log: Whether the y axis is logarithmic.
    """

    title: str
    y: str
    keys: Mapping[str, str]
    what: str
    normal: str
    abnormal: str
    references: Mapping[str, float] = field(default_factory=dict)
    log: bool = False

    @property
    def caption(self) -> str:
        """What is shown, its normal range, and its warning sign."""
        return f"**{self.title}.** {self.what} **Normal:** {self.normal} **Warning sign:** {self.abnormal}"


def describe_losses(settings: Settings) -> list[Curve]:
    """Describe the total and the four losses; losses with weight 0 have no values and are not drawn."""
    weights = settings.losses
    parts = " + ".join(f"{getattr(weights, name):g} {name.upper()}" for name in COLORS if getattr(weights, name) > 0)
    return [
        Curve(
            title="Total loss",
            y="loss",
            keys={"total": "total"},
            what=f"The minimised loss: {parts}.",
            normal="falls quickly in the first tens of steps, then slowly; small increases are usual while the targets sharpen.",
            abnormal="a jump without recovery (lower `optim.lr`), or a curve that is flat from the first step.",
        ),
        Curve(
            title="AMIP loss",
            y="mean absolute error",
            keys={"amip": "AMIP"},
            what=f"Masked image prediction: mean error over masked voxels, intensities in [0, 1]{_state_tenth(settings)}.",
            normal="falls from 0.2 to 0.3 to 0.15 or less within 100 to 200 steps. Errors are not comparable between kinds of "
            "masking: attention may mask the harder units.",
            abnormal="a plateau at the level of the trivial baselines (see below): the network predicts a constant grey, or a "
            "blur.",
        ),
        *_describe_distillations(settings),
    ]


def _state_tenth(settings: Settings) -> str:
    """State in HU what 0.1 of the intensity range is; empty for runs on MR only, which has no unit."""
    if settings.view.modality == "mr":
        return ""
    return f" (0.1 = {(settings.view.high - settings.view.low) * 0.1:g} HU{' in CT' if settings.view.modality == 'all' else ''})"


def _describe_distillations(settings: Settings) -> list[Curve]:
    schedule = settings.teacher.temperature == "schedule"
    ln_k = {} if isinstance(settings.projector.prototypes, str) else {"ln K": math.log(settings.projector.prototypes)}
    balanced = settings.teacher.centering == "sinkhorn"
    temperature = (
        "while tau_t rises the targets become flatter and the loss with them"
        if schedule
        else "it may rise while tau_t falls, because the targets become sharper"
    )
    decides = (
        " Sinkhorn spreads the targets over all prototypes by construction, so the value alone means little: see **gain** below."
        if balanced
        else " Read it with MI and gain below."
    )
    return [
        Curve(
            title=f"{name.upper()} loss",
            y="nats",
            keys={f"{name}": name.upper()},
            what=what,
            normal=f"starts near ln K, the value of a uniform prediction, and falls below it; {temperature}.{decides}",
            abnormal=abnormal,
            references=ln_k,
        )
        for name, what, abnormal in (
            (
                "ampd",
                "Patch distillation: cross-entropy between the noisy teacher's and the student's output for each masked unit "
                "of the same view.",
                "a curve that stays at ln K (nothing is learned), or drops to 0 at once (every unit has the same target: "
                "collapse).",
            ),
            (
                "aitd",
                "[CLS] distillation: cross-entropy between the student's [CLS] token and the teacher's for the other, "
                "overlapping view.",
                "ln K throughout, although this is common in short runs with few views per step; the benefit reported in the "
                "paper needs longer runs.",
            ),
            (
                "gitd",
                "Global distillation: the same for the mean of the last stage's tokens.",
                "ln K throughout, as for AITD; or a sudden drop to 0 with MI near 0 (collapse).",
            ),
        )
    ]


def describe_schedules(settings: Settings) -> list[Curve]:
    """Describe learning rate, momentum, temperatures and gradient norm."""
    optim, teacher = settings.optim, settings.teacher
    if teacher.temperature == "schedule":
        rises = (
            f"rises from {teacher.temperature_start:g} to {teacher.temperature_end:g} over {teacher.temperature_warmup:.0%} "
            "of the steps, then stays."
        )
        strange = "any other shape: the run was resumed with other settings."
    else:
        rises = (
            f"solved for at every step so that the targets' entropy is {teacher.target_entropy:g} of ln K; settles within tens "
            f"of steps, then drifts."
        )
        strange = "the minimum of 0.0005: the teacher's outputs hardly differ, and only an extreme temperature separates them."
    return [
        Curve(
            title="Learning rate",
            y="lr",
            keys={"lr": "lr"},
            what="The learning rate of AdamW.",
            normal=f"rises linearly over the first {optim.warmup:.0%} of the steps to {_show(optim.lr)}, then decays to "
            f"{optim.min_lr:g} along a cosine.",
            abnormal="a kink: the run was resumed with another number of steps.",
        ),
        Curve(
            title="Teacher momentum",
            y="m",
            keys={"momentum": "momentum"},
            what="The fraction of the teacher's weights that is kept at each step; the rest comes from the student.",
            normal=f"a cosine from {_show(teacher.momentum)} to {teacher.momentum_end:g} over all steps.",
            abnormal="a constant 1 from early on: the teacher no longer learns.",
        ),
        Curve(
            title="Teacher temperatures",
            y="tau_t",
            keys={f"tau_{name}": f"{name.upper()} ({what})" for name, what in _NAMES.items()},
            what="How much the teacher's targets are sharpened; smaller is sharper.",
            normal=rises,
            abnormal=strange,
            log=teacher.temperature != "schedule",
        ),
        Curve(
            title="Gradient norm",
            y="norm before clipping",
            keys={"grad_norm": "norm"},
            what=f"Norm of the gradient; above {optim.clip:g} it is clipped to {optim.clip:g}.",
            normal="highest in the first steps, then mostly below the threshold, with isolated spikes.",
            abnormal="above the threshold most of the time, or growing (lower `optim.lr`); 0 (nothing is learned).",
            references={"cut": optim.clip},
            log=True,
        ),
    ]


def describe_timings(settings: Settings) -> list[Curve]:
    """Describe throughput, memory, communication and time spent waiting for data."""
    return [
        Curve(
            title="Throughput",
            y="million voxels per second",
            keys={"voxels_per_s": "voxels"},
            what=f"Voxels of views processed by the student per second ({settings.train.batch} views of {settings.view.side}^3 "
            f"per step).",
            normal="constant after the first step, which starts the data loader.",
            abnormal="a slow decline (memory pressure, thermal throttling) or deep dips (another program, a slow disk).",
        ),
        Curve(
            title="Waiting for data",
            y="fraction of a step",
            keys={"waiting_share": "waiting"},
            what="Fraction of each step's time spent waiting for views.",
            normal="below 0.2 after the first step.",
            abnormal="above 0.2: increase `train.workers`, or put the store on a faster disk.",
            references={"limit": 0.2},
        ),
        Curve(
            title="Memory",
            y="GiB",
            keys={"memory_gib": "peak"},
            what="Peak memory of the process (of the GPU, if there is one) up to this step.",
            normal="constant after the first tens of steps.",
            abnormal="a steady increase: a memory leak.",
        ),
        Curve(
            title="Communication",
            y="MiB per step and rank",
            keys={"communicated_mib": "sent"},
            what="Data that each rank sends to the others in a step: gradients, and sums for the targets.",
            normal="constant, slightly more than the gradients, which are 4 bytes per trained weight.",
            abnormal="several times the gradients: they are not summed just once per step.",
        ),
    ]


def draw_columns(
    curves: Sequence[Curve], rows: Sequence[Mapping[str, Any]], scale: Mapping[str, float] | None = None
) -> list[Figure]:
    """Draw each curve for which the rows contain at least one column; `scale` holds factors by column."""
    figures = []
    for curve in curves:
        series = {}
        for key, name in curve.keys.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                factor = (scale or {}).get(key, 1.0)
                color = COLORS.get(key.removeprefix("tau_"), PURPLE)
                series[name] = Series([step for step, _ in points], [value * factor for _, value in points], color=color)
        if series:
            drawn = draw_curves(series, title=curve.title, y=curve.y, references=curve.references, log=curve.log)
            figures.append(Figure(encode_png(drawn), curve.caption, describe_course(curve.title, series)))
    return figures


def describe_course(title: str, series: Mapping[str, Series]) -> str:
    """Describe a plot in words, for readers who cannot see it."""
    ends = [
        f"{name} from {line.values[0]:.3g} at step {line.steps[0]:g} to {line.values[-1]:.3g} at step {line.steps[-1]:g}"
        for name, line in series.items()
    ]
    return f"{title} over steps: {'; '.join(ends)}."


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
