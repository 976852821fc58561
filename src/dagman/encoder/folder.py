"""Write and read encoder folders: weights with the preprocessing that they were trained with.

`model.safetensors` contains the weights `encoder.*` and `semantic_attention.*` of the teacher or the student; `config.json` is an
`EncoderConfig`.
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
    """One of the pretrainings from which an encoder's weights result.

    Attributes:
        method: Name of the method.
        steps: Number of optimiser steps.
        scans: Number of scans.
        patients: Number of patients; None if unknown.
        digest: Hash that identifies the scans; empty if unknown.
        modalities: Modalities of the scans.
        spacing: Voxel size in mm; 0 if unknown.
        view: Side of the views in voxels; 0 if unknown.
    """

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
        """Create a record from its values in `config.json`."""
        return cls(**values | {"modalities": tuple(values["modalities"])})

    def __str__(self) -> str:
        whose = "" if self.patients is None else f" of {count_noun(self.patients, 'patient')}"
        where = f" at {self.spacing:g} mm, views of {self.view}^3" if self.spacing else ""
        return f"{count_noun(self.scans, 'scan')} ({', '.join(self.modalities)}){whose}{where}: {self.method}, {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that an encoder needs in addition to its weights.

    Attributes:
        shape: Sizes of the backbone, in the terms of a Swin encoder.
        semantic: Stage and size of the semantic attention; None if there is none.
        size, method: Names of the presets of the pretraining.
        spacing: Voxel size of the pretraining in mm.
        low, high: HU that become 0 and 1.
        view: Side of the views of the pretraining in voxels.
        crop_body: Whether scans were cropped to the body.
        mask_fill: What replaces masked tokens in training.
        step: Number of optimiser steps; 0 if the weights are random.
        seed: Seed of the run.
        modalities: Modalities of the scans.
        scans_seen: Content hashes of all scans that were used in any pretraining of these weights.
        orientation: Orientation of the input.
        axes: Axes of the input.
        backbone: Name in `dagman.model.BACKBONES`, with a variant if it has any, such as swin or resnet3d:18.
        weights: Whether they are of the EMA teacher or of the student; methods without a teacher have only a student.
        first_weights: Fraction of the initial random weights left in the teacher's average; 0 for a student, None if unknown.
        average_age: Average age, in steps, of the weights in the teacher's average; 0 for a student, None if unknown.
        cohorts: The pretrainings of these weights, in order; empty if unknown.
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
        """Whether the weights are random; those imported from MONAI are not, although their number of steps is unknown."""
        return not self.step and self.method != "monai"


_FIELDS = frozenset(entry.name for entry in dataclasses.fields(EncoderConfig))


def write_encoder(folder: str | Path, config: EncoderConfig, state: dict[str, Tensor]) -> None:
    """Write an encoder folder, which appears only when it is complete.

    Args:
        folder: Folder to write.
        config: Configuration of the encoder.
        state: Weights; only `encoder.*` and `semantic_attention.*` are written.
    """
    from dagman import __version__

    weights = {
        k: v.detach().to("cpu", torch.float32).contiguous()
        for k, v in state.items()
        if k.startswith(("encoder.", "semantic_attention."))
    }
    with write_whole(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        checksum = hash_file(temporary / "model.safetensors")
        values = {"format": FORMAT, "dagman": __version__, "checksum": checksum, **dataclasses.asdict(config)}
        (temporary / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_config(folder: str | Path) -> EncoderConfig:
    """Read the configuration of an encoder folder.

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
            # The folder was exported for transformers, whose config.json has further entries.
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
        values["cohorts"] = tuple(PretrainedOn.from_json(cohort) for cohort in values.get("cohorts", ()))
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
    """Raise ValueError for invalid values before anything is built from them, as files may be malicious."""
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
    """Reject sizes of a Swin that need more weights than the file contains, before memory is allocated for them.

    Raises:
        EncoderError: config.json and model.safetensors are not of one encoder.
    """
    shape = config.shape
    if "swin" not in config.backbone:
        return
    # A lower bound: only the projections and bias tables of the attention.
    stages = enumerate(zip(shape.depths, shape.heads, strict=True))
    least = sum(depth * (4 * (shape.embed << stage) ** 2 + heads * (2 * shape.window - 1) ** 3) for stage, (depth, heads) in stages)
    if least > sum(value.numel() for value in state.values()):
        what = "its sizes need more weights than model.safetensors holds"
        raise EncoderError(what, where=Path(folder) / "config.json", do="Export the encoder again")


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read the weights of an encoder folder to the CPU.

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
    """Compare the file of weights with the checksum in config.json; older folders without a checksum are not checked.

    Raises:
        EncoderError: The file is damaged or was replaced.
    """
    folder = Path(folder)
    checksum = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("checksum")
    if checksum is not None and hash_file(folder / "model.safetensors") != checksum:
        what = "is damaged or was replaced: its checksum differs from that in config.json"
        raise EncoderError(what, where=folder / "model.safetensors", do="Copy the encoder again, or export it again")
