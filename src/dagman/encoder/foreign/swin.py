"""Read the configuration and weights of an encoder from a file of another program."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from torch import Tensor

from dagman.encoder.folder import EncoderConfig
from dagman.encoder.foreign.files import CONVERT, read_tensors
from dagman.encoder.foreign.layouts import (
    MERGINGS,
    REPEATING,
    STATED,
    ForeignWeights,
    ImportReport,
    Preparation,
    order_columns,
    recognise,
    split_statement,
)
from dagman.encoder.foreign.segresnet import holds_segresnet, recognise_segresnet
from dagman.errors import EncoderError
from dagman.model import SwinShape, find_backbone

_STATED = ("spacing", "low", "high", "view", "downsample")


def read_foreign(text: str) -> tuple[EncoderConfig, dict[str, Tensor], ImportReport]:
    """Read the encoder of a name `monai:TEXT`.

    Args:
        text: FILE, or FILE:spacing=1.5:low=-175:high=250 if the preprocessing of the file is unknown.

    Returns:
        Its configuration, its weights under MONAI's names, and a report on how they were mapped.

    Raises:
        EncoderError: As in `read_tensors` and `recognise`, or the preprocessing is unknown and was not stated.
    """
    path, stated = split_statement(text)
    _check_names(stated, path)
    tensors, metadata, holder = read_tensors(path)
    if holds_segresnet(tensors):
        return _read_segresnet(tensors, metadata | stated, path)
    weights = recognise(tensors, holder, path)
    merging = stated.get("downsample") or metadata.get("downsample") or weights.merging
    if merging not in MERGINGS:
        raise EncoderError(
            f"downsample={merging} is not a kind of patch merging", where=path, do=f"Give one of {', '.join(MERGINGS)}"
        )
    preparation = _prepare(weights, metadata | stated, path)
    shape = _read_shape(weights.state, path)
    variant = merging if merging == REPEATING else "mergingv2"
    state = weights.state if merging == REPEATING else order_columns(weights.state, merging)
    if "patch_embed.norm.weight" in state:
        variant += "+norm"
    if any(name.startswith("layers1c.") for name in state):
        variant += "+v2"
    config = EncoderConfig(
        shape=shape,
        semantic=None,
        size=f"monai-swin:{variant}",
        method="monai",
        spacing=preparation.spacing,
        low=preparation.low,
        high=preparation.high,
        view=preparation.view,
        crop_body=metadata.get("crop_body", "yes") != "no",
        modalities=("MR",) if metadata.get("modalities") == "MR" else ("CT",),
        backbone=f"monai-swin:{variant}",
    )
    prepared = f"prepared at {config.spacing:g} mm, HU {config.low:g} to {config.high:g} ({preparation.source})"
    report = ImportReport(
        layout=weights.layout, merging=merging, matched=len(state), left_out=weights.left_out, preparation=prepared
    )
    return config, state, report


def _read_segresnet(
    tensors: dict[str, Tensor], values: dict[str, str], path: Path
) -> tuple[EncoderConfig, dict[str, Tensor], ImportReport]:
    weights, shape = recognise_segresnet(tensors, path)
    preparation = _prepare(weights, values, path)
    config = EncoderConfig(
        shape=shape,
        semantic=None,
        size=f"segresnet:{shape.embed}",
        method="monai",
        spacing=preparation.spacing,
        low=preparation.low,
        high=preparation.high,
        view=preparation.view,
        backbone=f"segresnet:{shape.embed}",
    )
    if str(shape.embed) not in find_backbone("segresnet:32").variants:
        raise EncoderError(f"is a SegResNet of {shape.embed} channels", where=path, do="Give CT-FM's, which has 32")
    prepared = f"prepared at {config.spacing:g} mm, HU {config.low:g} to {config.high:g} ({preparation.source})"
    report = ImportReport(
        layout=weights.layout, merging="", matched=len(weights.state), left_out=weights.left_out, preparation=prepared
    )
    return config, weights.state, report


def _check_names(stated: dict[str, str], path: Path) -> None:
    unknown = sorted(stated.keys() - set(_STATED))
    if unknown:
        raise EncoderError(f"{unknown[0]} is not an option of weights", where=path, do=f"State {', '.join(_STATED)}")


def _prepare(weights: ForeignWeights, values: dict[str, str], path: Path) -> Preparation:
    known = weights.preparation
    do = f"State it, such as monai:{path}:spacing=1.5:low=-500:high=500"
    if known is None and not {"spacing", "low", "high"} <= values.keys():
        raise EncoderError(f"is a {weights.layout}, but its preprocessing is not known", where=path, do=do)
    try:
        numbers = {name: float(values[name]) for name in ("spacing", "low", "high", "view") if name in values}
    except ValueError:
        raise EncoderError("spacing, low, high and view are numbers", where=path, do=do) from None
    base = known or STATED
    if numbers:
        base = dataclasses.replace(base, source="as stated")
    prepared = Preparation(
        spacing=numbers.get("spacing", base.spacing),
        low=numbers.get("low", base.low),
        high=numbers.get("high", base.high),
        view=int(numbers.get("view", base.view)) if math.isfinite(numbers.get("view", base.view)) else 0,
        source=base.source,
    )
    finite = all(map(math.isfinite, (prepared.spacing, prepared.low, prepared.high)))
    if not finite or prepared.spacing <= 0 or prepared.low >= prepared.high or prepared.view < 1:
        raise EncoderError("needs a spacing above 0, a low below its high, and a view of voxels", where=path, do=do)
    return prepared


def _read_shape(state: dict[str, Tensor], path: Path) -> SwinShape:
    blocks = [
        [name for name in state if name.startswith(f"layers{stage}.0.blocks.") and name.endswith("norm1.weight")]
        for stage in range(1, 5)
    ]
    tables = [state.get(f"layers{stage}.0.blocks.0.attn.relative_position_bias_table") for stage in range(1, 5)]
    projection = state["patch_embed.proj.weight"]
    if projection.ndim != 5:
        raise EncoderError(
            f"its patch projection has the shape {tuple(projection.shape)}", where=path, do="Give a 3D Swin's weights"
        )
    if projection.shape[1] != 1:
        raise EncoderError("was trained on several channels", where=path, do="Give weights for one channel")
    biases = [table for table in tables if table is not None and table.ndim == 2 and table.numel()]
    if len(biases) < 4:
        raise EncoderError("lacks stages of a SwinTransformer", where=path, do=CONVERT)
    # A bias table has a row for each of the (2 w - 1)^3 offsets in a window of w^3 tokens.
    window = (round(biases[0].shape[0] ** (1 / 3)) + 1) // 2
    for stage, table in enumerate(biases):
        if table.shape[0] != (2 * window - 1) ** 3 or (projection.shape[0] << stage) % table.shape[1]:
            what = (
                f"the bias table of stage {stage + 1} has the shape {tuple(table.shape)}, which fits no cubic window and its heads"
            )
            raise EncoderError(what, where=path, do="Give the weights as trained")
    hidden = state.get("layers1.0.blocks.0.mlp.linear1.weight")
    return SwinShape(
        embed=projection.shape[0],
        depths=tuple(len(names) for names in blocks),
        heads=tuple(table.shape[1] for table in biases),
        window=window,
        mlp_ratio=4.0 if hidden is None else hidden.shape[0] / projection.shape[0],
    )
