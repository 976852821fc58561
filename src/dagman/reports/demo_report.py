"""The report of `dagman demo`: pictures first, then one table with its conclusion in words, then the details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagman.records.counts import count_noun, list_some
from dagman.records.files import write_text
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.planes import CONVENTION, Contour, draw_three_planes
from dagman.reports.figures.views import draw_summary
from dagman.reports.names import format_interval
from dagman.reports.page import Block, DataTable, Figure, Level, Links, Listing, Section, Text, Verdict, render_page
from dagman.reports.run.pictures import name_view
from dagman.reports.run.run_page import show_gallery
from dagman.reports.run.verdicts import summarize_verdicts
from dagman.reports.style import CYCLE
from dagman.reports.volumes import Layer, Volume
from dagman.settings.tree import UNIT
from dagman.tasks.seeds import SeedComparison, describe_values
from dagman.training.monitoring.health import judge_run
from dagman.training.run import Run

_WINDOW = (-1000.0, 400.0)
"""Lower and upper end of the display window in HU."""
COLUMNS = ("task", "measure", "pretrained", "random init.", "difference (95 % CI)", "without a network")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlined:
    """A crop of a CT with ground truth and prediction.

    Attributes:
        voxels: X Y Z in RAS+ order, in HU.
        truth: Ground-truth classes, X Y Z; 0 is background, class i is names[i - 1].
        predicted: Predicted classes, coded in the same way.
        spacing: Voxel size in mm, equal along all axes.
        names: Names of the classes.
    """

    voxels: NDArray[np.int16]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    spacing: float
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything that the report shows.

    Attributes:
        runs: Pretraining runs, one per seed.
        comparisons: Pretrained against random initialisation over the seeds, one per task.
        seconds: Duration of each part.
        held_out: Number of patients held out from pretraining.
        few_shot_steps: Training steps of each segmentation.
        earlier: Seconds spent in earlier calls of the command; included in `seconds`.
        example: A segmented crop, if there is one.
    """

    runs: Sequence[Run]
    comparisons: Sequence[SeedComparison]
    seconds: Mapping[str, float]
    held_out: int
    few_shot_steps: int
    earlier: float = 0.0
    example: Outlined | None = None


def write_demo_report(folder: Path, demo: Demo) -> Path:
    """Write `report.html` to the demo's folder and return its path."""
    path = folder / "report.html"
    write_text(path, render_demo(demo))
    return path


def render_demo(demo: Demo) -> str:
    """Render the report as HTML."""
    settings = demo.runs[0].settings
    seeds = count_noun(len(demo.runs), "seed")
    lead = (
        f"A `{settings.size}` encoder was pretrained by `{settings.method}` for {count_noun(settings.train.steps, 'step')} of "
        f"{settings.train.batch} views on synthetic CTs, with {seeds}, and compared with the same network with random "
        f"initialisation. {describe_minutes(demo.seconds, demo.earlier)} in all."
    )
    level, sentence = conclude(demo.comparisons)
    table = DataTable(COLUMNS, tabulate_comparisons(demo.comparisons))
    sections = [
        Section("An example", [*_show_view(demo.runs[0]), *_show_example(demo.example)]),
        Section("Effect of pretraining", [Verdict(level, sentence), table]),
        Section("How these results were obtained", _explain(demo)),
        Section("Attention before and after", _tabulate_attention(demo.runs)),
        Section("Health of the runs", _judge_runs(demo.runs)),
        *show_gallery(demo.runs[0], settings),
        Section("Individual reports", [_link_pages(demo)]),
        Section("Time", [DataTable(["part", "seconds"], [[part, round(value, 1)] for part, value in demo.seconds.items()])]),
    ]
    return render_page("dagman demo", lead, sections, footer="Made by `dagman demo`. This page needs no network connection.")


def describe_minutes(seconds: Mapping[str, float], earlier: float) -> str:
    """State the minutes over all calls and, if the demo was resumed, the minutes of the last call.

    >>> describe_minutes({"cohort": 60.0, "prepare": 30.0}, 0.0), describe_minutes({"cohort": 60.0, "prepare": 30.0}, 60.0)
    ('1.5 minutes', '1.5 minutes (0.5 of them in the last call)')
    """
    total = sum(seconds.values())
    last = f" ({(total - earlier) / 60:.1f} of them in the last call)" if earlier else ""
    return f"{total / 60:.1f} minutes{last}"


def tabulate_comparisons(comparisons: Sequence[SeedComparison]) -> list[list[str]]:
    """Tabulate comparisons under COLUMNS: means with standard deviations over seeds, and paired differences with intervals."""
    return [
        [
            comparison.question,
            comparison.measure,
            describe_values(comparison.pretrained),
            describe_values(comparison.fresh),
            format_interval(comparison.difference, *(comparison.interval or (np.nan, np.nan)), sign=True),
            ", ".join(f"{name} {value:.3f}" for name, value in comparison.others) or "–",
        ]
        for comparison in comparisons
    ]


def conclude(comparisons: Sequence[SeedComparison]) -> tuple[Level, str]:
    """Summarise the comparisons in one sentence: which tasks improved, which got worse, and where seeds vary as much.

    Returns:
        The level of the verdict and the sentence.
    """
    if all(comparison.interval is None for comparison in comparisons):
        return "warn", "With a single seed, random variation cannot be estimated, so no difference is claimed."
    outcomes = ("better", "worse", "open")
    by_outcome = {
        outcome: [comparison.question for comparison in comparisons if comparison.outcome == outcome] for outcome in outcomes
    }
    seeds = len(comparisons[0].pretrained)
    ahead = "".join(
        f"; a baseline without a network ({comparison.best_other}) is better than both: {comparison.question}"
        for comparison in comparisons
        if comparison.best_other
    )
    if not (by_outcome["better"] or by_outcome["worse"]):
        return "warn", f"No effect of pretraining was detected: no difference exceeds the variation between {seeds} seeds{ahead}."
    parts = [
        f"pretraining {verb}: {list_some(questions)}"
        for verb, questions in (("improved", by_outcome["better"]), ("harmed", by_outcome["worse"]))
        if questions
    ]
    if by_outcome["open"]:
        parts.append(f"no difference beyond the variation between {seeds} seeds: {list_some(by_outcome['open'])}")
    text = f"{'; '.join(parts)}{ahead}."
    return "warn" if by_outcome["worse"] else "ok", text[0].upper() + text[1:]


def _show_view(run: Run) -> list[Block]:
    if not run.gallery_steps:
        return []
    gallery = run.gallery(run.gallery_steps[-1])
    if not {"attention", "reconstruction"} <= gallery.keys():
        return []
    view, restored = gallery["view"][0, 0], gallery["reconstruction"][0, 0]
    grid = tuple(side // UNIT for side in view.shape)
    hidden, attention = gallery["hidden"][0].astype(bool).reshape(grid), gallery["attention"][0]
    relative = (attention * attention.size).reshape(grid)
    spacing = [float(gallery["spacing"].reshape(-1)[0])] * 3
    caption = (
        "**A view of a synthetic CT**, the masked regions, the student's reconstruction, and the teacher's attention "
        f"({relative.min():.3f} to {relative.max():.3f} times uniform; the colour scale spans this range)."
        f"{name_view(run.gallery_sources(run.gallery_steps[-1]), 1)} {CONVENTION}"
    )
    alt = "Axial and coronal slices of a scan: original, masked, reconstructed, and with attention in colour."
    return [Figure(encode_png(draw_summary(view, restored, spacing, hidden, relative)), caption, alt, kind="slices")]


def _explain(demo: Demo) -> list[Block]:
    settings = demo.runs[0].settings
    return [
        Listing(
            [
                "Means ± standard deviation over seeds. Each seed determines a pretraining run, a random initialisation, and a "
                "random draw of labelled patients. Differences are paired by seed, with a 95 % confidence interval from "
                "Student's t distribution; if it includes 0, no difference is claimed.",
                f"{count_noun(demo.held_out, 'patient')} were held out from pretraining; segmentation and retrieval are "
                f"evaluated only on them.",
                f"**Segmentation**: each encoder with a new U-Net decoder, trained for "
                f"{count_noun(demo.few_shot_steps, 'step')} on two crops of 32^3 voxels at {settings.view.spacing:g} mm, with "
                f"the same learning rate for all layers and both networks, and the same labelled patients and crops. Dice is "
                f"computed on fixed crops of the held-out patients. Use `dagman segment` for longer training and smaller organs.",
                "**Retrieval**: frozen features (mean, standard deviation and maximum of x1 to x4 within the organ's mask); a "
                "query is correct if its nearest neighbour among all other patients is the same organ. Nothing is trained.",
                "**Reconstruction**: mean absolute error over masked voxels of fixed views, for the exported encoder (the "
                "teacher), divided by that of the best of three trivial baselines; random init. is the same network before its "
                "first step. The views come from the scans used in pretraining.",
            ]
        )
    ]


def _show_example(example: Outlined | None) -> list[Block]:
    if example is None:
        return []
    contours = []
    for code, (name, color) in enumerate(zip(example.names, CYCLE, strict=False), start=1):
        contours.append(Contour(mask=example.truth == code, color=color, label=name, width=1.6))
        contours.append(Contour(mask=example.predicted == code, color=color, width=1.4, style="dashed"))
    drawn = draw_three_planes(example.voxels.astype(np.float32), (example.spacing,) * 3, window=_WINDOW, contours=contours)
    caption = (
        "**A patient held out from pretraining**, segmented by the pretrained network with the most labelled patients. Solid: "
        f"ground truth. Dashed: prediction. {CONVENTION}"
    )
    colors = CYCLE[: len(example.names)]
    return [
        Volume(
            voxels=example.voxels,
            spacing=(example.spacing,) * 3,
            still=encode_png(drawn),
            caption=caption,
            alt="Slices of a scan with ground-truth and predicted outlines",
            title="a patient held out from pretraining",
            window=_WINDOW,
            hounsfield=True,
            layers=[
                Layer(codes=example.truth, names=example.names, colors=colors),
                Layer(codes=example.predicted, names=example.names, colors=colors, dashed=True),
            ],
        )
    ]


def _tabulate_attention(runs: Sequence[Run]) -> list[Block]:
    rows: list[list[object]] = []
    for run in runs:
        for when, row in (("before", run.monitors[0]), ("after", run.monitors[-1])):
            if attention := row.get("attention"):
                shares = [f"{attention[key]:.4f}" for key in ("entropy", "brightness", "body_share", "body_units")]
                rows.append([f"seed {run.settings.seed}, {when}", *shares])
    text = (
        "The teacher's attention. Entropy is normalised by its maximum, so 1 is uniform. The correlation is with the mean "
        "intensity of the units; the share inside the body is compared with that of uniform attention."
    )
    columns = ["run", "entropy", "correlation with brightness", "share inside the body", "if uniform"]
    return [Text(text), DataTable(columns, rows)] if rows else []


def _judge_runs(runs: Sequence[Run]) -> list[Block]:
    judged = [(run, summarize_verdicts(judge_run(run))) for run in runs]
    own = (", explained below", ", explained in the report of the run")
    return [Verdict(verdict.level, f"Seed {run.settings.seed}: {verdict.text.replace(*own)}") for run, verdict in judged]


def _link_pages(demo: Demo) -> Links:
    pages = [(f"seed {run.settings.seed}", f"runs/{run.path.name}/report.html") for run in demo.runs]
    return Links("The curves and the health of each pretraining run:", pages)
