"""The best, median and worst scan of a segmentation to scroll through, with the outlines of reader and model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dagman.evaluation.results import Results
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.planes import CONVENTION, Contour, draw_three_planes
from dagman.reports.figures.windows import choose_window
from dagman.reports.page import Block, Text
from dagman.reports.style import CYCLE, GREEN, ORANGE
from dagman.reports.tasks.segmentation_verdicts import format_measure
from dagman.reports.volumes import Layer, Volume
from dagman.tasks.segment.examples import Example, read_examples


def show_scans(results: Results) -> list[Block]:
    """Show crops around the structures, one block per scan; empty if no examples were stored."""
    extra = results.summary.extra
    examples = read_examples(results.path, extra["examples"])
    names = [structure["name"] for structure in extra["structures"]]
    whose = dict(zip(results.predictions["item"], results.predictions["patient"], strict=True))
    volumes = [
        _show_scan(kind if len(examples) > 1 else "the tested scan", example, names, extra["examples"][kind]["dice"], whose)
        for kind, example in examples.items()
    ]
    if not volumes:
        return []
    model, subset = extra["shown"]["model"], extra["shown"]["subset"]
    text = (
        f"By mean Dice of `{model}` with {subset} of the labels; slices through the centre of the reader's outline. Solid: "
        f"reader. Dashed: model. {CONVENTION}"
    )
    return [Text(text), *volumes]


def _show_scan(kind: str, example: Example, names: Sequence[str], dice: dict[str, float | None], whose: dict[str, str]) -> Volume:
    scores = ", ".join(
        f"{name} {format_measure('dice', value)}" for name, value in dice.items() if value is not None and value == value
    )
    ct, patient = example.modality == "CT", whose.get(example.item, "")
    window = choose_window(example.voxels, hounsfield=ct)
    drawn = draw_three_planes(
        example.voxels.astype(np.float32), example.spacing, example.point, window=window, contours=_outline(example, names)
    )
    colors = [GREEN] if len(names) == 1 else [CYCLE[index % len(CYCLE)] for index in range(len(names))]
    present = set(np.unique(example.truth)) | set(np.unique(example.predicted))
    shown = [name if code in present else "" for code, name in enumerate(names, start=1)]
    guessed = [ORANGE] if len(names) == 1 else colors
    return Volume(
        voxels=example.voxels,
        spacing=example.spacing,
        still=encode_png(drawn),
        caption=f"**{kind[0].upper()}{kind[1:]}: `{example.item}`**, Dice: {scores or 'undefined'}. Patient `{patient}`.",
        alt=f"{kind} scan with outlines of reader and model",
        title=" · ".join(dict.fromkeys(filter(None, (example.item, patient)))),
        window=window,
        hounsfield=ct,
        point=example.point,
        layers=[
            Layer(codes=example.truth, names=[f"{names[0]}, reader"] if len(names) == 1 else shown, colors=colors),
            Layer(codes=example.predicted, names=[f"{names[0]}, model"] if len(names) == 1 else shown, colors=guessed, dashed=True),
        ],
    )


def _outline(example: Example, names: Sequence[str]) -> list[Contour]:
    contours = []
    for code, name in enumerate(names, start=1):
        reader, model = (GREEN, ORANGE) if len(names) == 1 else (CYCLE[(code - 1) % len(CYCLE)],) * 2
        truth, predicted = example.truth == code, example.predicted == code
        if truth.any() or predicted.any():
            label = name if len(names) > 1 else ""
            contours.append(Contour(mask=truth, color=reader, label=label or f"{name}, reader", width=1.6))
            contours.append(
                Contour(mask=predicted, color=model, label="" if label else f"{name}, model", width=1.4, style="dashed")
            )
    return contours
