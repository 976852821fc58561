"""Example items of a task: crops to scroll through, with the parts that extend beyond the scan."""

from __future__ import annotations

import numpy as np

from dagman.evaluation.results import Results
from dagman.reports.figures.classification import draw_example
from dagman.reports.figures.encoding import encode_png
from dagman.reports.figures.planes import CONVENTION
from dagman.reports.figures.windows import choose_window
from dagman.reports.names import name_method
from dagman.reports.page import Block, Text
from dagman.reports.style import YELLOW
from dagman.reports.viewer.examples import exhibit_items, link_viewer
from dagman.reports.volumes import Layer, Volume, VolumeGrid
from dagman.tasks.inputs.examples import Example, read_examples

_SIDES = (("to the patient's left", "to the patient's right"), ("behind", "in front"), ("below", "above"))
"""Directions beyond the start and the end of each axis of a crop in RAS+ order."""


def show_examples(results: Results, which: str = "scores averaged over repeats") -> list[Block]:
    """Show the stored examples with outlines and attention; `which` describes the selection, after the name of the model."""
    who, examples = read_examples(results.path)
    if not examples:
        return []
    below = (
        " Below each: the encoder's [CLS] attention relative to uniform, with the colour scale on its bar, which spans at least "
        "0.25 to each side of uniform. After short runs it is not meaningful yet."
        if any(example.attention is not None for example in examples)
        else ""
    )
    model, _, method = who.rpartition(", ")
    pair = f"{model}, {name_method(method)}" if model else who
    shown = "Crops around the item, in a lung window if a quarter or more is lung or air, otherwise in a soft-tissue window."
    mirrored = ""
    if any(describe_beyond(example) for example in examples):
        mirrored = " Hatched areas lie beyond the scan: they are mirrored for the network, and are not anatomy."
    return [
        Text(f"Items of {pair}, {which}. {shown} Outlined: the structure.{mirrored} {CONVENTION}{below}"),
        VolumeGrid([_show_example(example) for example in examples]),
        *link_viewer(results.path / "report.html", exhibit_items(results)),
    ]


def describe_beyond(example: Example) -> str:
    """State how far a crop extends beyond its scan, such as "12 mm below"; empty if it does not, or if this is unknown."""
    if example.within is None:
        return ""
    parts = []
    for (start, stop), size, sides in zip(example.within, example.voxels.shape, _SIDES, strict=True):
        for voxels, side in zip((start, size - stop), sides, strict=True):
            # Two grids of the same region may differ by up to half a voxel.
            if voxels > 0.5:
                parts.append(f"{max(voxels * example.spacing, 1):.0f} mm {side}")
    return ", ".join(parts)


def _show_example(example: Example) -> Volume:
    whose = f" Patient `{example.patient}`, file `{example.file}`." if example.patient else ""
    beyond = describe_beyond(example)
    if example.probability is None:
        outcome = f": {example.words}."
    else:
        outcome = f" is `{example.label}`, predicted as `{example.predicted}` with a probability of {example.probability:.2f}."
    caption = f"**{example.kind.capitalize()}**: `{example.name}`{outcome}{whose}"
    caption += f" The crop extends beyond the scan: {beyond}." if beyond else ""
    outline = (
        [] if example.inside.all() else [Layer(codes=example.inside.astype(np.uint8), names=["the structure"], colors=[YELLOW])]
    )
    return Volume(
        voxels=example.voxels,
        spacing=(example.spacing,) * 3,
        still=encode_png(draw_example(example)),
        caption=caption,
        alt=f"{example.name}, {example.kind}" + (f"; beyond the scan: {beyond}" if beyond else ""),
        title=" · ".join(filter(None, (example.name, example.patient, example.file))),
        window=choose_window(example.voxels, hounsfield=example.modality == "CT"),
        hounsfield=example.modality == "CT",
        layers=outline,
        attention=example.attention,
        within=example.within if beyond else None,
    )
