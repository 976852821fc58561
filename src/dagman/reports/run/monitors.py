"""Figures of a run's monitors over steps: targets, reconstruction, features, attention, head diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagman.reports.figures import Series, draw_curves, encode_png
from dagman.reports.page import DataTable, Figure
from dagman.reports.run.curves import COLORS, describe_course
from dagman.reports.style import BLUE, CYCLE, GREEN, INK, MUTED, ORANGE

CLAIM = (
    "The paper's claim (Fig. 4): attention-guided masking makes attention heads similar, and a noisy teacher keeps them "
    "diverse, so `dagman` should be above `dagman-clean-teacher` here. Our own short runs do not show this: with noise "
    "the semantic attention's divergence was 0.041 and 0.029 against 0.026 and 0.024 without, stages 3 and 4 did not differ, and "
    "**seeds differ by as much**. A single run is not conclusive: compare long runs of both methods over several seeds. Only "
    "rankings can be compared with Fig. 4a, whose unit is not stated."
)
_Rows = Sequence[Mapping[str, Any]]


def draw_targets(rows: _Rows) -> list[Figure]:
    """Draw entropy H, mutual information MI and gain of the targets of each projector."""
    texts = {
        "H": (
            "Entropy of the targets, H",
            "fraction of ln K",
            "Mean entropy of the teacher's output for a sample: 0 is a single prototype, 1 is uniform.",
            "near `teacher.target_entropy` if the temperature is solved for; between 0.2 and 0.9 otherwise.",
            "1 (uniform: the loss stays at ln K), or 0. A good H can hide a collapse, so check MI as well.",
            {"uniform": 1.0},
        ),
        "MI": (
            "Mutual information of targets and samples, MI",
            "fraction of the maximum",
            "Entropy of the mean target minus mean entropy of the targets, divided by its maximum.",
            "0.2 to 0.6 (short runs with few views per step: 0.35 for patches, 0.5 for [CLS] and global targets).",
            "a fall to 0: every sample has the same target, which is **collapse**.",
            {"collapse": 0.05},
        ),
        "gain": (
            "How well the student predicts them, gain",
            "gain",
            "1: the student's predictions equal the targets; 0: no better than a constant; below 0: worse.",
            "for AMPD 0.2 to 0.5 after 100 steps. AITD and GITD stayed at 0 in all short runs tried: image-level targets seem "
            "to need longer runs.",
            "AMPD at 0 after a few hundred steps. With Sinkhorn targets, this is the decisive measure.",
            {"a constant prediction": 0.0},
        ),
    }
    figures = []
    for key, (title, y, what, normal, abnormal, references) in texts.items():
        series = {name.upper(): _collect(rows, ("projectors", name, key), COLORS[name]) for name in ("ampd", "aitd", "gitd")}
        figures += _draw(series, title, y, f"**{title}.** {what} **Normal:** {normal} **Warning sign:** {abnormal}", references)
    return figures


def draw_reconstruction(rows: _Rows) -> list[Figure]:
    """Draw the reconstruction errors of student and teacher, and of three trivial baselines."""
    names = {
        "student": ("student", INK),
        "teacher": ("teacher", MUTED),
        "push_pull": ("interpolation", ORANGE),
        "training_median": ("training median", BLUE),
        "visible_mean": ("visible mean", GREEN),
    }
    series = {
        name: _collect(rows, ("reconstruction", key), color, dashed=key not in ("student", "teacher"))
        for key, (name, color) in names.items()
    }
    caption = (
        "**Reconstruction against trivial baselines.** Mean absolute error over masked voxels of fixed validation views, for "
        "the student, for the teacher's encoder with the student's reconstruction head, and for three baselines without a "
        "network: the mean of the view's visible voxels, the median of the training intensities, and interpolation from the "
        "visible voxels. **Normal:** the student falls below all three "
        "within 30 to 90 steps, and the teacher follows behind it. **Warning sign:** a student above the lowest dashed line "
        "after that; a teacher far above the student at the end, which means that it still contains early weights. The dashed "
        "lines move because the "
        "masks follow the attention."
    )
    return _draw(series, "Reconstruction against trivial baselines", "mean absolute error", caption)


def draw_features(rows: _Rows) -> list[Figure]:
    """Draw the standard deviation and effective rank of the features x4."""
    std = _draw(
        {
            "teacher": _collect(rows, ("features", "std"), BLUE),
            "student": _collect(rows, ("student", "features", "std"), INK),
        },
        "Standard deviation of the features",
        "standard deviation",
        "**Standard deviation of the features.** Mean standard deviation of the last stage's features over tokens of the "
        "validation "
        "views. **Normal:** constant or slowly changing. **Warning sign:** a fall to 0: all tokens become identical (collapse).",
    )
    rank = _draw(
        {
            "teacher": _collect(rows, ("features", "effective_rank"), GREEN),
            "student": _collect(rows, ("student", "features", "effective_rank"), INK),
        },
        "Effective rank of the features",
        "directions",
        "**Effective rank of the features.** The effective number of dimensions that the features occupy. **Normal:** a fall "
        "in the first steps, then constant or rising. **Warning sign:** a fall towards 1.",
    )
    return std + rank


def draw_attention_course(rows: _Rows) -> list[Figure]:
    """Draw the entropy of the semantic attention, its correlation with brightness, and its share inside the body."""
    entropy = _draw(
        {
            "teacher": _collect(rows, ("attention", "entropy"), BLUE),
            "student": _collect(rows, ("student", "attention", "entropy"), INK),
        },
        "Entropy of the attention",
        "fraction of ln N",
        "**Entropy of the attention.** 1 is uniform attention over all N units of a view. **Normal:** near 0.998 in the first "
        "few hundred steps: the attention is then almost uniform, and its map is not meaningful; masking uses only its "
        "ranking. It falls in longer runs (to 0.96 in one of 1,000 steps). **Warning sign:** a fall to 0: a single unit "
        "receives all attention.",
        {"uniform": 1.0},
    )
    follows = _draw(
        {
            "correlation with brightness": _collect(rows, ("attention", "brightness"), ORANGE),
            "share inside the body": _collect(rows, ("attention", "body_share"), GREEN),
            "share if uniform": _collect(rows, ("attention", "body_units"), MUTED, dashed=True),
        },
        "Attention, brightness and body",
        "correlation, share",
        "**Attention, brightness and body.** Rank correlation of the teacher's attention with mean intensity over the units of "
        "a view, and the share of attention inside the body (dashed: the same for uniform attention). **Normal:** with a noisy "
        "teacher, a correlation that varies between -0.7 and 0.7. **Warning sign:** a stronger correlation of either sign: the "
        "masks then always cover the densest, or the least dense, tissue. 0.8 to 0.9 was observed with clean teachers.",
    )
    return entropy + follows


def draw_diversity(rows: _Rows) -> list[Figure]:
    """Draw the diversity of the teacher's heads, for each stage and for the semantic attention."""
    stages = {f"stage{stage}": f"stage {stage}" for stage in range(1, 5)} | {"sa": "semantic attention"}
    kinds = {
        "js": (
            "Divergence between heads",
            "nats",
            "Generalised Jensen-Shannon divergence between the teacher's heads of a stage: 0 means all heads attend to "
            "the same tokens.",
            "small at first (untrained heads are nearly uniform, and therefore similar), and slowly rising.",
            "a fall to 0 in all stages: the heads have become identical.",
            None,
        ),
        "entropy": (
            "Entropy of the heads",
            "nats",
            "Entropy of the teacher's attention heads, mean over heads; the band is one standard deviation between heads. "
            "Stages 1 to 4 attend within windows of 4^3 tokens (at most ln 64 = 4.16), the semantic attention over all units.",
            "near its maximum in short runs, falling slowly, with a band that widens as heads specialise.",
            "a sudden fall with a vanishing band.",
            "entropy_spread",
        ),
        "distance_mm": (
            "Attention distance of the heads",
            "mm",
            "Mean attention distance of the teacher's heads, weighted by attention; the band is one standard deviation between "
            "heads. For the semantic attention it is measured from the centroid of attention.",
            "constant, and longer in later stages, whose tokens are larger.",
            "all heads of a stage converge to the same distance.",
            "distance_spread",
        ),
    }
    figures = []
    for key, (title, y, what, normal, abnormal, spread) in kinds.items():
        series = {
            name: _collect(rows, ("diversity", stage, key), color, spread=("diversity", stage, spread) if spread else None)
            for (stage, name), color in zip(stages.items(), CYCLE, strict=False)
        }
        figures += _draw(series, title, y, f"**{title}.** {what} **Normal:** {normal} **Warning sign:** {abnormal}")
    return figures


def tabulate_diversity(rows: _Rows) -> list[DataTable]:
    """Tabulate the diversity of the heads of student and teacher at the first and the last evaluation."""
    evaluated = [row for row in rows if row.get("diversity")]
    if not evaluated:
        return []
    ends = (evaluated[0], evaluated[-1])
    measures = {
        "js": "divergence (nats)",
        "entropy": "entropy (nats)",
        "entropy_spread": "its spread over heads",
        "distance_mm": "reach (mm)",
    }
    columns = ["heads of", "place", *(f"{what}, step {row['step']}" for row in ends for what in measures.values())]
    owners = (
        {"student": ("student", "diversity"), "teacher": ("diversity",)} if "student" in ends[-1] else {"student": ("diversity",)}
    )
    body = [
        [
            owner,
            "semantic attention" if place == "sa" else place.replace("stage", "stage "),
            *(_reach(row, (*path, place, key)) for row in ends for key in measures),
        ]
        for owner, path in owners.items()
        for place in ends[-1]["diversity"]
    ]
    return [DataTable(columns, body)]


def _collect(rows: _Rows, path: Sequence[str], color: str, *, dashed: bool = False, spread: Sequence[str] | None = None) -> Series:
    points = [(row["step"], value, _reach(row, spread)) for row in rows if (value := _reach(row, path)) is not None]
    bands = [band for _, _, band in points if band is not None]
    return Series(
        [step for step, _, _ in points],
        [value for _, value, _ in points],
        spread=bands if bands and len(bands) == len(points) else None,
        color=color,
        dashed=dashed,
    )


def _reach(row: Mapping[str, Any], path: Sequence[str] | None) -> float | None:
    value: Any = row
    for key in path or ["nothing"]:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _draw(
    series: Mapping[str, Series], title: str, y: str, caption: str, references: Mapping[str, float] | None = None
) -> list[Figure]:
    filled = {name: line for name, line in series.items() if line.values}
    if not filled:
        return []
    drawn = draw_curves(filled, title=title, y=y, references=references)
    return [Figure(encode_png(drawn), caption, describe_course(title, filled))]
