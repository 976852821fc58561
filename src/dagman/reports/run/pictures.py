"""Pictures from the gallery of a run: masks, reconstructions, attention, and their development over steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dagman.reports.figures import CONVENTION, draw_three_planes, encode_png, overlay_relative
from dagman.reports.figures.planes import describe_reach
from dagman.reports.figures.views import (
    HINT,
    MASKED,
    draw_attention,
    draw_course,
    draw_heads,
    draw_masks,
    draw_restored,
    draw_restored_views,
    spread_units,
)
from dagman.reports.page import Block, Figure, Text
from dagman.reports.style import FULL_WIDTH, HALF_WIDTH, SKY, YELLOW
from dagman.reports.volumes import Layer, Volume, VolumeGrid
from dagman.settings import Settings
from dagman.settings.tree import UNIT
from dagman.training.monitoring.verdicts import UNIFORM_ATTENTION

_SHOWN = 4
_COURSE = 5
Gallery = Mapping[str, NDArray]


class Galleries(Protocol):
    """The part of the interface of `Run` that this module uses."""

    @property
    def gallery_steps(self) -> list[int]:
        """Steps at which views were stored."""

    def gallery(self, step: int) -> dict[str, NDArray]:
        """Load the arrays of a step."""


def find_hints(hidden: NDArray[np.bool_], attention: NDArray, share: float) -> NDArray[np.bool_]:
    """Find the hints of one view (N units): the floor(sN) most attended of its visible units."""
    # 1e-9 prevents rounding errors of the product from losing a unit.
    count = min(math.floor(share * len(hidden) + 1e-9), int((~hidden).sum()))
    order = np.argsort(np.where(hidden, np.inf, -attention), kind="stable")
    hints = np.zeros(len(hidden), dtype=bool)
    hints[order[:count]] = True
    return hints


def name_view(sources: Sequence[Mapping[str, str]], number: int) -> str:
    """State the patient and scan of a view (numbered from 1) for a caption; empty if unknown."""
    if number > len(sources):
        return ""
    source = sources[number - 1]
    patient = f"Patient `{source['patient']}`, scan" if source["patient"] else "Scan"
    return f" {patient} `{source['scan']}`."


def find_modality(sources: Sequence[Mapping[str, str]], number: int, settings: Settings) -> str:
    """Return the modality (CT or MR) of the scan of a view (numbered from 1); for older runs, that of the settings."""
    stated = sources[number - 1].get("modality", "") if number <= len(sources) else ""
    return stated or ("MR" if settings.view.modality == "mr" else "CT")


def _state_range(modalities: Collection[str], settings: Settings) -> str:
    """State which intensities are shown as black and white, for the modalities of the views."""
    hounsfield = f"{settings.view.low:g} (black) to {settings.view.high:g} HU (white)"
    scaled = "the 0.5 (black) to the 99.5 percentile (white) of their scans"
    if "MR" not in modalities:
        return f"from {hounsfield}"
    return f"from {hounsfield} in CT, and from {scaled} in MR" if "CT" in modalities else f"from {scaled}"


def show_masks(gallery: Gallery, settings: Settings, sources: Sequence[Mapping[str, str]] = ()) -> list[Block]:
    """Show views with masked units shaded and hints framed; `sources` gives the scan and patient of each view."""
    views, spacing, grid = gallery["view"][:_SHOWN, 0], _spacing(gallery), _grid(gallery)
    volumes = []
    for number, view in enumerate(views, start=1):
        hidden = gallery["hidden"][number - 1].astype(bool)
        hints = None
        if settings.masking.choice.gives_hints and "attention" in gallery:
            hints = find_hints(hidden, gallery["attention"][number - 1], settings.masking.hints)
        framed = int(hints.sum()) if hints is not None else 0
        mask, hint = hidden.reshape(grid), hints.reshape(grid) if hints is not None else None
        layers = [Layer(codes=mask.astype(np.uint8), names=[MASKED], colors=[SKY], fill=0.4)]
        if hint is not None and framed:
            layers.append(Layer(codes=hint.astype(np.uint8), names=[HINT], colors=[YELLOW]))
        volumes.append(
            Volume(
                voxels=view,
                spacing=spacing,
                still=encode_png(draw_masks(view, spacing, mask, hint, width=FULL_WIDTH if number == 1 else HALF_WIDTH)),
                caption=f"**View {number}.** {int(hidden.sum())} of {hidden.size} units masked ({hidden.mean():.0%})"
                + (f", {framed} hints." if framed else ".")
                + name_view(sources, number),
                alt=f"Axial, coronal and sagittal slices of view {number} with {int(hidden.sum())} masked units shaded and "
                f"{framed} hints framed.",
                title=f"view {number}",
                window=(0.0, 1.0),
                layers=layers,
            )
        )
    side = settings.view.side * spacing[0]
    modalities = {find_modality(sources, number, settings) for number in range(1, len(views) + 1)}
    text = (
        f"Each view is a cube of {side:g} mm cut from a scan of the fixed validation set; views are shown "
        f"{_state_range(modalities, settings)}. A view is divided into units of {UNIT}^3 voxels "
        f"({UNIT * spacing[0]:g} mm); those shaded blue are hidden from the student, which must restore them. "
        f"{_explain_masking(settings)} {CONVENTION}"
    )
    return [Text(text), volumes[0], *([VolumeGrid(volumes[1:])] if volumes[1:] else [])]


def show_reconstructions(gallery: Gallery, settings: Settings, sources: Sequence[Mapping[str, str]] = ()) -> list[Block]:
    """Show reconstructions next to the originals; empty if the method does not reconstruct. `sources` as in `show_masks`."""
    if "reconstruction" not in gallery:
        return []
    views, restored, spacing, grid = (
        gallery["view"][:_SHOWN, 0],
        gallery["reconstruction"][:_SHOWN, 0],
        _spacing(gallery),
        _grid(gallery),
    )
    hidden = [row.astype(bool).reshape(grid) for row in gallery["hidden"][:_SHOWN]]
    errors = [
        float(np.abs(back - view)[spread_units(mask, view.shape)].mean())
        for view, back, mask in zip(views, restored, hidden, strict=True)
    ]
    span = settings.view.high - settings.view.low
    of_ct = [find_modality(sources, number, settings) == "CT" for number in range(1, len(errors) + 1)]
    shown = [
        f"view {number}: {error:.3f}" + (f" ({error * span:.0f} HU)" if hounsfield else "")
        for number, (error, hounsfield) in enumerate(zip(errors, of_ct, strict=True), start=1)
    ]
    tenth = f" 0.1 is {span * 0.1:g} HU." if of_ct[0] else ""
    blocks: list[Block] = [
        Text(
            "From left to right: the student's input, its reconstruction, the original, and the absolute difference of the "
            "last two. Visible units show the original, as they are not reconstructed. Blurred edges are normal in short runs, "
            "because a smooth prediction minimises the mean error. Mean absolute error over masked voxels, for intensities in "
            f"[0, 1]: {'; '.join(shown)}."
        ),
        Figure(
            encode_png(draw_restored(views[0], restored[0], spacing, hidden[0])),
            f"**View 1, three planes.**{name_view(sources, 1)} {CONVENTION} The difference is black where nothing was masked "
            f"or the reconstruction is exact; its colour scale saturates at 0.4.{tenth}",
            f"View 1 masked, reconstructed, original and difference in three planes; mean error {errors[0]:.3f}.",
            kind="slices",
        ),
    ]
    if len(views) > 1:
        picture = draw_restored_views(list(views[1:]), list(restored[1:]), spacing, hidden[1:])
        blocks.append(
            Figure(
                encode_png(picture),
                "**Further views**, axial slices."
                + "".join(f" View {number}:{name_view(sources, number)}" for number in range(2, len(views) + 1) if sources),
                f"Views 2 to {len(views)} masked, reconstructed, original and difference.",
                kind="slices",
            )
        )
    return blocks


def show_attention(gallery: Gallery, settings: Settings, sources: Sequence[Mapping[str, str]] = ()) -> list[Block]:
    """Show the attention over views, and of each head; empty if the method has no semantic attention.

    `sources` as in `show_masks`.
    """
    if "attention" not in gallery:
        return []
    spacing, grid = _spacing(gallery), _grid(gallery)
    views = gallery["view"][:_SHOWN, 0]
    relative = _relative(gallery["attention"][:_SHOWN], grid)
    low, high = float(relative.min()), float(relative.max())
    count = settings.model.heads[0] if settings.model.own_cls else settings.model.sa_heads
    blocks: list[Block] = [
        Text(
            f"Attention of the teacher's [CLS] token (Eq. 1), mean over {count} heads, with one value per unit. 1 "
            f"(transparent) is uniform attention; orange is more, blue less. **The actual range is {low:.3f} to {high:.3f} "
            f"times uniform.** {describe_reach(relative)} "
            f"{_judge_uniformity(gallery['attention'][:_SHOWN])}"
        )
    ]
    volumes = [
        Volume(
            voxels=view,
            spacing=spacing,
            still=encode_png(
                draw_attention(view, spacing, values)
                if number == 1
                else draw_three_planes(view, spacing, overlay=overlay_relative(values, "times uniform"), width=HALF_WIDTH)
            ),
            caption=f"**View {number}.** {values.min():.3f} to {values.max():.3f} times uniform."
            + name_view(sources, number)
            + (f" Top row: the slices without attention. {CONVENTION}" if number == 1 else ""),
            alt=f"Attention over axial, coronal and sagittal slices of view {number}, from {values.min():.3f} to "
            f"{values.max():.3f} times uniform.",
            title=f"view {number}",
            window=(0.0, 1.0),
            attention=values,
        )
        for number, (view, values) in enumerate(zip(views, relative, strict=True), start=1)
    ]
    blocks += [volumes[0], *([VolumeGrid(volumes[1:])] if volumes[1:] else [])]
    if "attention_heads" in gallery:
        heads = _relative(gallery["attention_heads"][0], grid)
        caption = (
            f"**Each head on view 1**, with a common colour scale: {heads.min():.3f} to {heads.max():.3f} times uniform. "
            f"Similar maps mean redundant heads."
        )
        blocks.append(
            Figure(
                encode_png(draw_heads(views[0], spacing, heads)),
                caption,
                f"The attention of {len(heads)} heads over one axial slice.",
                kind="slices",
            )
        )
    return blocks


def show_course(run: Galleries) -> list[Block]:
    """Show the reconstruction and attention of one slice at up to five of the steps at which views were stored."""
    steps = run.gallery_steps
    if len(steps) < 2:
        return []
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, _COURSE).round().astype(int))]
    galleries = {step: run.gallery(step) for step in chosen}
    last = galleries[chosen[-1]]
    grid, view = _grid(last), last["view"][0, 0]
    restored = {}
    for step, gallery in galleries.items():
        if "reconstruction" in gallery:
            voxels = spread_units(gallery["hidden"][0].astype(bool).reshape(grid), view.shape)
            restored[step] = np.where(voxels, gallery["reconstruction"][0, 0], view)
    relative = {step: _relative(gallery["attention"][0], grid) for step, gallery in galleries.items() if "attention" in gallery}
    if not restored and not relative:
        return []
    rows = " and ".join(
        [
            *(["the student's reconstruction"] if restored else []),
            *(["the attention, with a common colour scale,"] if relative else []),
        ]
    )
    caption = (
        f"**View 1 over the course of training**: {rows} at steps {', '.join(map(str, chosen))}. Attention may change the mask "
        f"from step to step."
    )
    return [
        Figure(
            encode_png(draw_course(view, _spacing(last), restored, relative)),
            caption,
            f"One axial slice at steps {', '.join(map(str, chosen))}.",
            kind="slices",
        )
    ]


def _explain_masking(settings: Settings) -> str:
    masking = settings.masking
    if masking.choice.gives_hints:
        hints = f" except for hints (framed yellow), {masking.hints:.0%} of all units" if masking.hints else ""
        return f"The {masking.ratio:.0%} of units that the teacher attends to most are masked,{hints}.".replace(",.", ".")
    return f"Masked units are {masking.choice.description}."


def measure_uniformity(attention: NDArray) -> float:
    """Compute the mean entropy of rows of attention (n N) as a fraction of ln N; 1 is uniform."""
    shares = attention / attention.sum(axis=-1, keepdims=True)
    logarithms = np.log(np.where(shares > 0, shares, 1.0))
    return float(-(shares * logarithms).sum(axis=-1).mean() / math.log(max(attention.shape[-1], 2)))


def _judge_uniformity(attention: NDArray) -> str:
    uniformity = measure_uniformity(attention)
    if uniformity >= UNIFORM_ATTENTION:
        return (
            f"With an entropy of {uniformity:.4f} of its maximum it is almost uniform: it shows a ranking of small differences, "
            "which is all that masking uses, and **should not be interpreted**. This is usual in short runs."
        )
    return f"Its entropy is {uniformity:.4f} of its maximum (1 = uniform)."


def _relative(attention: NDArray, grid: tuple[int, int, int]) -> NDArray:
    return (attention * attention.shape[-1]).reshape(*attention.shape[:-1], *grid)


def _spacing(gallery: Gallery) -> tuple[float, float, float]:
    x, y, z = np.broadcast_to(np.asarray(gallery["spacing"], dtype=float).reshape(-1), 3)
    return float(x), float(y), float(z)


def _grid(gallery: Gallery) -> tuple[int, int, int]:
    x, y, z = (side // UNIT for side in gallery["view"].shape[2:])
    return x, y, z
