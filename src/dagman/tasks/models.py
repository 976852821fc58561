"""What a user may name as a MODEL, and how it is made: a pretrained encoder, a fresh one, or a baseline.

Every network is an `Encoder` with four feature maps at strides 4, 8, 16, 32, so that all are given the same crops, pooled in the
same way and fine-tuned by the same loop; what else is compared (radiomics:size, pixels, histogram) is in
`dagman.tasks.inputs.descriptors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from dagman.encoder.encoder import Encoder
from dagman.encoder.foreign import split_statement
from dagman.encoder.loading import load_encoder
from dagman.errors import TaskError
from dagman.model import BACKBONES
from dagman.records.names import nearest_name
from dagman.settings.presets import list_presets

Kind = Literal["encoder", "scratch", "monai", "backbone", "radiomics", "pixels", "histogram"]
NETWORKS = ("encoder", "scratch", "monai", "backbone")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What was named: its kind, the rest of the name, and the name itself."""

    kind: Kind
    argument: str
    text: str
    weights: str = "auto"

    @property
    def name(self) -> str:
        """How tables and figures call it: a run, folder or file by its own name, without its path; else what was written."""
        if self.kind == "monai":
            return f"monai:{split_statement(self.argument)[0].name}"
        if self.kind != "encoder" or self.argument.startswith("hub:"):
            return self.text
        folder = Path(self.argument).resolve()
        inner = folder.name in ("encoder", "encoder-student") and (folder.parent / "settings.toml").exists()
        run = folder.parent.name if inner else folder.name
        return f"{run} (student)" if self.weights == "student" or (inner and folder.name == "encoder-student") else run

    @property
    def has_network(self) -> bool:
        """Whether it has weights, and so can be fine-tuned."""
        return self.kind in NETWORKS


def parse_model(text: str | Path, *, weights: str = "auto") -> ModelSpec:
    """A run or encoder folder, `scratch:SIZE[:SEED]`, `monai:PATH`, a CNN (`resnet3d:SIZE[:SEED]`, `resenc:SIZE`), or a baseline.

    weights: of a run, as in `load_encoder`. Nothing is loaded. Raises TaskError for anything else, naming the nearest.
    """
    text = str(text)
    head, _, rest = text.partition(":")
    first = rest.partition(":")[0]
    choices = _list_choices()
    if f"{head}:{first}" in choices and head != "radiomics":
        return ModelSpec(kind="scratch" if head == "scratch" else "backbone", argument=rest, text=text)
    if head == "monai" and rest:
        if not split_statement(rest)[0].is_file():
            raise TaskError("does not exist", where=text, do="Give a file with weights of MONAI, SMIT or VoCo")
        return ModelSpec(kind="monai", argument=rest, text=text)
    if head == "hub" and rest:
        return ModelSpec(kind="encoder", argument=text, text=text, weights=weights)
    if text in ("pixels", "histogram"):
        return ModelSpec(kind=cast(Kind, text), argument="", text=text)
    if text == "radiomics:size":
        return ModelSpec(kind="radiomics", argument="size", text=text)
    if Path(text).is_dir():
        return ModelSpec(kind="encoder", argument=text, text=text, weights=weights)
    nearest = nearest_name(text, [*choices, "monai:PATH"])
    remedy = f"Nearest: {nearest}" if nearest else "Give a run or an encoder folder, or one of " + ", ".join(choices)
    raise TaskError("is neither a folder nor a known model", where=text, do=remedy)


def name_models(specs: Sequence[ModelSpec]) -> list[str]:
    """A name for each model, all different; raises TaskError when one is named twice."""
    texts = [spec.text for spec in specs]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise TaskError(f"{twice[0]} is named twice", do="Name each model once")
    names = [spec.name for spec in specs]
    return [name if names.count(name) == 1 else spec.text for spec, name in zip(specs, names, strict=True)]


def load_network(spec: ModelSpec, *, device: str = "auto", precision: str = "fp32") -> Encoder:
    """The encoder of a model with weights, in evaluation mode, without gradients.

    Raises TaskError for a model without weights, EncoderError for weights that do not fit, MissingExtraError without MONAI.
    """
    if spec.has_network:
        return load_encoder(spec.text, device=device, precision=precision, weights=spec.weights)
    raise TaskError("has no weights", where=spec.text, do="Give a run, an encoder folder, scratch:SIZE, or resnet3d:SIZE")


def _list_choices() -> list[str]:
    fresh = [f"scratch:{size}" for size in list_presets("sizes")]
    return [
        *fresh,
        *(f"{name}:{variant}" for name, kind in BACKBONES.items() for variant in kind.baselines),
        "radiomics:size",
        "pixels",
        "histogram",
    ]
