"""The encoder folder: weights with the preprocessing they were trained with. Its one writer and reader.

`model.safetensors` holds the `encoder.*` and `semantic_attention.*` of the teacher or of the student;
`config.json` is an `EncoderConfig`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dagman.errors import EncoderError, SettingsError
from dagman.method.networks import SemanticShape
from dagman.model import SwinShape, find_backbone
from dagman.model.backbone import MaskFill
from dagman.records.counts import count_noun
from dagman.records.files import write_whole
from dagman.records.hashes import hash_file

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PretrainedOn:
    """One pretraining behind an encoder's weights. `digest` identifies the scans; None and empty where it is not known."""

    method: str
    steps: int
    scans: int
    patients: int | None = None
    digest: str = ""
    modalities: tuple[str, ...] = ("CT",)
    spacing: float = 0.0
    view: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PretrainedOn:
        """A record as `config.json` holds it."""
        return cls(**values | {"modalities": tuple(values["modalities"])})

    def __str__(self) -> str:
        whose = "" if self.patients is None else f" of {count_noun(self.patients, 'patient')}"
        where = f" at {self.spacing:g} mm, views of {self.view}^3" if self.spacing else ""
        return f"{count_noun(self.scans, 'scan')} ({', '.join(self.modalities)}){whose}{where}: {self.method}, {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What an encoder needs besides its weights.

    Attributes:
        shape: Sizes of the backbone, in the terms of a Swin encoder.
        backbone: Its name in `dagman.model.BACKBONES`, with its variant, such as swin or resnet3d:18.
        semantic: Place and size of the semantic attention, or None.
        size, method: Names of the presets it was trained with.
        spacing: Voxel size in mm it was trained at.
        low, high: HU that become 0 and 1.
        view: Side of the views it was trained on, in voxels.
        crop_body: Whether scans were cropped to the body.
        step: Optimiser steps behind the weights; 0 for a fresh encoder.
        seed: Seed of the run.
        modalities: Modalities of the scans seen.
        scans_seen: Content hashes of the scans seen in pretraining, in all pretrainings behind the weights.
        cohorts: The pretrainings behind the weights, the first one first; empty where it is not known.
        weights: Whose they are: the EMA teacher's, or the student's (the only ones where a method has no teacher).
        first_weights: Share of the teacher's first, random weights that is left in it; 0 for a student, None where it is not known.
        average_age: Average age in steps of what the weights average; 0 for a student, None where it is not known.
    """

    shape: SwinShape
    semantic: SemanticShape | None
    size: str
    method: str
    spacing: float
    low: float
    high: float
    view: int
    crop_body: bool = True
    mask_fill: Literal["zero", "token"] = "zero"
    step: int = 0
    seed: int = 0
    modalities: tuple[str, ...] = ("CT",)
    scans_seen: tuple[str, ...] = field(default=(), repr=False)
    orientation: str = "RAS"
    axes: str = "B C X Y Z"
    backbone: str = "swin"
    weights: Literal["teacher", "student"] = "teacher"
    first_weights: float | None = None
    average_age: float | None = None
    cohorts: tuple[PretrainedOn, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the weights are random; those of MONAI's files are not, though nobody says after how many steps."""
        return not self.step and self.method != "monai"


_FIELDS = frozenset(one.name for one in dataclasses.fields(EncoderConfig))


def write_encoder(folder: str | Path, config: EncoderConfig, state: dict[str, Tensor]) -> None:
    """Write an encoder folder whole. `state` holds keys `encoder.*` and `semantic_attention.*`; others are left out."""
    from dagman import __version__

    kept = {
        k: v.detach().to("cpu", torch.float32).contiguous()
        for k, v in state.items()
        if k.startswith(("encoder.", "semantic_attention."))
    }
    with write_whole(folder) as temporary:
        temporary.mkdir()
        save_file(kept, temporary / "model.safetensors", metadata={"format": "pt"})
        checksum = hash_file(temporary / "model.safetensors")
        values = {"format": FORMAT, "dagman": __version__, "checksum": checksum, **dataclasses.asdict(config)}
        (temporary / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_config(folder: str | Path) -> EncoderConfig:
    """The configuration of an encoder folder.

    Raises:
        EncoderError: The file is missing, damaged, or of another format version.
    """
    path = Path(folder) / "config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
        values.pop("dagman")
        values.pop("checksum", None)
        if values.get("model_type") == "dagman":
            # Written for transformers, which adds values of its own.
            values = {key: value for key, value in values.items() if key in _FIELDS}
        if version != FORMAT:
            raise EncoderError(
                f"is of encoder format {version}; this version of dagman reads {FORMAT}",
                where=path,
                do="Use the version of dagman that wrote it",
            )
        shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("shape").items()}
        semantic = values.pop("semantic")
        values |= {k: tuple(values[k]) for k in ("modalities", "scans_seen")}
        values["cohorts"] = tuple(
            PretrainedOn(**one | {"modalities": tuple(one["modalities"])}) for one in values.get("cohorts", ())
        )
        sizes = find_backbone(values.get("backbone", "swin")).shape or SwinShape
        config = EncoderConfig(shape=sizes(**shape), semantic=SemanticShape(**semantic) if semantic else None, **values)
        _check_config(config)
        return config
    except FileNotFoundError:
        raise EncoderError(
            "is not an encoder folder: config.json is missing", where=folder, do="Give a run, or its folder `encoder`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SettingsError) as error:
        raise EncoderError(f"is damaged: {error}", where=path, do="Export the encoder again") from None


def _check_config(config: EncoderConfig) -> None:
    """Raise ValueError for values that no encoder has, before anything is built of them: a file may have been made to do harm."""
    shape = config.shape
    sizes = [shape.embed, shape.window, *shape.depths, *shape.heads, config.view, config.step]
    if not all(type(size) is int and 0 <= size < 2**31 for size in sizes) or min(shape.embed, shape.window, config.view) < 1:
        raise ValueError("its sizes are not whole numbers above 0")
    numbers = (config.spacing, config.low, config.high, shape.mlp_ratio)
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError("spacing, low, high and mlp_ratio are not numbers")
    if config.spacing <= 0 or config.low >= config.high:
        raise ValueError(f"spacing {config.spacing:g} mm, HU {config.low:g} to {config.high:g} is not a valid preprocessing")
    if config.mask_fill not in get_args(MaskFill):
        raise ValueError(f"mask_fill is {config.mask_fill!r}")
    if config.semantic is not None and not (1 <= config.semantic.stage <= len(shape.depths)):
        raise ValueError(f"its semantic attention reads stage {config.semantic.stage}")


def check_sizes(folder: str | Path, config: EncoderConfig, state: dict[str, Tensor]) -> None:
    """Refuse a Swin's sizes that need more weights than there are, before memory is taken for them.

    Raises:
        EncoderError: config.json and model.safetensors are not of one encoder.
    """
    shape = config.shape
    if "swin" not in config.backbone:
        return
    # The projections and bias tables of attention alone: every encoder of these sizes has more.
    stages = enumerate(zip(shape.depths, shape.heads, strict=True))
    least = sum(depth * (4 * (shape.embed << stage) ** 2 + heads * (2 * shape.window - 1) ** 3) for stage, (depth, heads) in stages)
    if least > sum(value.numel() for value in state.values()):
        what = "its sizes need more weights than model.safetensors holds"
        raise EncoderError(what, where=Path(folder) / "config.json", do="Export the encoder again")


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of an encoder folder, on the CPU.

    Raises:
        EncoderError: The file is missing or damaged.
    """
    path = Path(folder) / "model.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise EncoderError("model.safetensors is missing", where=folder, do="Export the encoder again") from None
    except SafetensorError as error:
        raise EncoderError(f"is damaged: {error}", where=path, do="Export the encoder again") from None


def check_weights(folder: str | Path) -> None:
    """Compare the weights' file with the checksum in config.json; folders written before there was one are not checked.

    Raises:
        EncoderError: It is another file: damaged, or replaced.
    """
    folder = Path(folder)
    checksum = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("checksum")
    if checksum is not None and hash_file(folder / "model.safetensors") != checksum:
        what = "is damaged or was replaced: its checksum differs from that in config.json"
        raise EncoderError(what, where=folder / "model.safetensors", do="Copy the encoder again, or export it again")
