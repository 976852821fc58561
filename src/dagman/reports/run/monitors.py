"""The monitors of a run over its steps: targets, reconstruction, features, attention, head diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagman.reports.figures import Series, draw_curves, encode_png
from dagman.reports.page import DataTable, Figure
from dagman.reports.run.curves import COLORS, describe_course
from dagman.reports.style import BLUE, CYCLE, GREEN, INK, MUTED, ORANGE

CLAIM = (
    "The paper's claim (Fig. 4): masking by attention makes the heads of a network alike, and a noisy teacher keeps them "
    "diverse, so `dagman` should stand above `dagman-clean-teacher` here. Our own short runs do not show it: with noise "
    "the semantic attention's divergence was .041 and .029 against .026 and .024 without, stages 3 and 4 did not differ, "
    "and **seeds differ by as much**. One run cannot settle it: compare runs of both methods over several seeds, and long "
    "ones. Only orders compare with Fig. 4a, whose unit is not stated."
)
_Rows = Sequence[Mapping[str, Any]]


def draw_targets(rows: _Rows) -> list[Figure]:
    """H, MI and gain of each projector's targets."""
    texts = {
        "H": (
            "Entropy of the targets, H",
            "share of ln K",
            "Mean entropy of the teacher's answer to one sample: 0 is one prototype, 1 is all alike.",
            "near `teacher.target_entropy` where the temperature is solved; between 0.2 and 0.9 otherwise.",
            "1 (uniform: the loss sits at ln K), or 0. A good H alone can hide a collapse: read MI.",
            {"uniform": 1.0},
        ),
        "MI": (
            "How well targets distinguish samples, MI",
            "share of the possible",
            "Entropy of the mean target minus mean entropy of the targets, over the largest it could be.",
            "0.2 to 0.6 (short runs at few views a step: 0.35 patches, 0.5 [CLS] and view).",
            "a fall to 0: every sample gets the same target, which is **collapse**.",
            {"collapse": 0.05},
        ),
        "gain": (
            "How well the student predicts them, gain",
            "gain",
            "1: the student's answers equal the targets; 0: no better than one constant answer; below 0: worse.",
            "for AMPD 0.2 to 0.5 after 100 steps. AITD and GITD stayed at 0 in all short runs tried: image tokens seem to "
            "need longer ones.",
            "AMPD at 0 after some hundred steps. With Sinkhorn targets this is the number that decides.",
            {"one constant answer": 0.0},
        ),
    }
    figures = []
    for key, (title, y, what, normal, abnormal, references) in texts.items():
        series = {name.upper(): _collect(rows, ("projectors", name, key), COLORS[name]) for name in ("ampd", "aitd", "gitd")}
        figures += _draw(series, title, y, f"**{title}.** {what} **Normal:** {normal} **Warning sign:** {abnormal}", references)
    return figures


def draw_reconstruction(rows: _Rows) -> list[Figure]:
    """The errors of student and teacher beside three trivial baselines."""
    names = {
        "student": ("student", INK),
        "teacher": ("teacher", MUTED),
        "push_pull": ("smooth fill", ORANGE),
        "training_median": ("training median", BLUE),
        "visible_mean": ("visible mean", GREEN),
    }
    series = {
        name: _collect(rows, ("reconstruction", key), color, dashed=key not in ("student", "teacher"))
        for key, (name, color) in names.items()
    }
    caption = (
        "**Reconstruction against trivial baselines.** Mean absolute error over masked voxels of fixed validation views, for "
        "the student, for the teacher's encoder under the student's reconstruction head, and for three answers that "
        "need no network: the mean of the view's visible voxels, the median of the "
        "training intensities, and a smooth fill from the visible voxels. **Normal:** the student falls below all three "
        "within 30 to 90 steps, and the teacher follows behind it. **Warning sign:** a student above the lowest dashed line later "
        "than that; a teacher far above the student at the end: it still holds old weights. The dashed lines move because the "
        "masks follow the attention."
    )
    return _draw(series, "Reconstruction against trivial baselines", "mean absolute error", caption)


def draw_features(rows: _Rows) -> list[Figure]:
    """Standard deviation and effective rank of x4."""
    std = _draw(
        {
            "teacher": _collect(rows, ("features", "std"), BLUE),
            "student": _collect(rows, ("student", "features", "std"), INK),
        },
        "Spread of the features",
        "standard deviation",
        "**Spread of the features.** Mean standard deviation of the last stage's features over tokens of the validation "
        "views. **Normal:** level, or a slow change. **Warning sign:** a fall to 0: all tokens become alike (collapse).",
    )
    rank = _draw(
        {
            "teacher": _collect(rows, ("features", "effective_rank"), GREEN),
            "student": _collect(rows, ("student", "features", "effective_rank"), INK),
        },
        "Effective rank of the features",
        "directions",
        "**Effective rank of the features.** How many directions the same features fill. **Normal:** a fall in the first "
        "steps, then level or rising. **Warning sign:** a fall towards 1.",
    )
    return std + rank


def draw_attention_course(rows: _Rows) -> list[Figure]:
    """Entropy of the semantic attention, and what it follows."""
    entropy = _draw(
        {
            "teacher": _collect(rows, ("attention", "entropy"), BLUE),
            "student": _collect(rows, ("student", "attention", "entropy"), INK),
        },
        "Entropy of the attention",
        "share of ln N",
        "**Entropy of the attention.** 1 is uniform attention over all N units of a view. **Normal:** near 0.998 in "
        "the first few hundred steps: the attention is then almost uniform and its map points at nothing; only its order is "
        "used for masking. It falls in longer runs (to 0.96 in one of 1,000 steps). "
        "**Warning sign:** a fall to 0: one unit gets everything.",
        {"uniform": 1.0},
    )
    follows = _draw(
        {
            "correlation with brightness": _collect(rows, ("attention", "brightness"), ORANGE),
            "share inside the body": _collect(rows, ("attention", "body_share"), GREEN),
            "share if uniform": _collect(rows, ("attention", "body_units"), MUTED, dashed=True),
        },
        "What the attention follows",
        "correlation, share",
        "**What the attention follows.** Rank correlation of the teacher's attention and mean intensity over the units "
        "of a view, and "
        "how much of the attention lies inside the body (dashed: how much would if it were uniform). **Normal:** with a "
        "noisy teacher, a correlation that changes and stays between -0.7 and 0.7. **Warning sign:** more than that, "
        "either way: the masks then always hide the densest, or the lightest, tissue. 0.8 to 0.9 was seen with clean "
        "teachers.",
    )
    return entropy + follows


def draw_diversity(rows: _Rows) -> list[Figure]:
    """How different the teacher's heads of each stage and of the semantic attention are."""
    stages = {f"stage{stage}": f"stage {stage}" for stage in range(1, 5)} | {"sa": "semantic attention"}
    kinds = {
        "js": (
            "Divergence between heads",
            "nats",
            "Generalised Jensen-Shannon divergence between the teacher's heads of a stage: 0 means all heads attend to "
            "the same tokens.",
            "small at first (fresh heads are nearly uniform, so alike), and slowly rising.",
            "a fall to 0 in all stages: the heads have become copies.",
            None,
        ),
        "entropy": (
            "Entropy of the heads",
            "nats",
            "How widely a head of the teacher attends, mean over heads; the band is one standard deviation between "
            "them. Stages 1 to 4 look "
            "within windows of 4^3 tokens, at most ln 64 = 4.16; the semantic attention over all units.",
            "near its maximum in short runs, falling slowly, with a band that widens as heads specialise.",
            "a sudden fall with a vanishing band.",
            "entropy_spread",
        ),
        "distance_mm": (
            "Reach of the heads",
            "mm",
            "Mean distance a head of the teacher attends over, weighted by its attention; the band is one standard "
            "deviation between heads. "
            "The semantic attention's is measured from its own centroid.",
            "level, longer in later stages, whose tokens are larger.",
            "a collapse of all heads of a stage to one reach.",
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
    """The heads at the first and the last evaluation as numbers, the student's apart from the teacher's."""
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
