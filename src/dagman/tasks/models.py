"""Parse and load what a user gives as a MODEL: a pretrained encoder, a randomly initialised one, or a baseline.

Every network is an `Encoder` with four feature maps at strides 4, 8, 16 and 32, so all networks get the same crops, pooling and
fine-tuning. The baselines without a network (radiomics:size, pixels, histogram) are in `dagman.tasks.inputs.descriptors`.
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
    """A parsed MODEL."""

    kind: Kind
    argument: str
    "The rest of the text, such as a path, a size or a seed."
    text: str
    "The text as the user gave it."
    weights: str = "auto"
    "Which weights of a run, as in `load_encoder`."

    @property
    def name(self) -> str:
        """Name in tables and figures: that of the run, folder or file without its path, or else the text itself."""
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
        """Whether it is a network, which can be fine-tuned."""
        return self.kind in NETWORKS


def parse_model(text: str | Path, *, weights: str = "auto") -> ModelSpec:
    """Parse a MODEL without loading it.

    Args:
        text: A run or encoder folder, `scratch:SIZE[:SEED]`, `monai:PATH`, `hub:NAME`, a CNN (`resnet3d:SIZE[:SEED]`,
            `resenc:SIZE`), or a baseline.
        weights: Which weights of a run, as in `load_encoder`.

    Raises:
        TaskError: The text is none of these; the message suggests the closest one.
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
    """Give each model a unique name.

    Raises:
        TaskError: A model occurs twice.
    """
    texts = [spec.text for spec in specs]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise TaskError(f"{twice[0]} is named twice", do="Name each model once")
    names = [spec.name for spec in specs]
    return [name if names.count(name) == 1 else spec.text for spec, name in zip(specs, names, strict=True)]


def load_network(spec: ModelSpec, *, device: str = "auto", precision: str = "fp32") -> Encoder:
    """Load the encoder of a model, in evaluation mode and without gradients.

    Raises:
        TaskError: The model is not a network.
        EncoderError: The weights do not fit.
        MissingExtraError: MONAI is needed, but not installed.
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
