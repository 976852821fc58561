"""A classifier that was fitted, as a folder: `classifier.json`, `head.safetensors`, `encoder/`; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dagman.encoder.encoder import Encoder
from dagman.encoder.items import RefusedItem
from dagman.encoder.loading import load_encoder
from dagman.errors import TaskError
from dagman.records.files import write_whole
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.tables.items import Item
from dagman.tasks.contract import Contract, read_contract
from dagman.tasks.finetuning import FinetunedModel, LinearHead
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.inputs.item_crops import cut_items
from dagman.tasks.models import ModelSpec, parse_model
from dagman.tasks.probes import LinearProbe

FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredItems:
    """Probabilities n x K of the items that could be used, in the order given, and who was refused."""

    items: tuple[Item, ...]
    scores: NDArray[np.float64] = field(repr=False)
    hashes: tuple[str, ...] = field(default=(), repr=False)
    "Content hash of each item's scan."
    refused: tuple[RefusedItem, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A linear probe on features, or a fine-tuned encoder with its head.

    Attributes:
        classes: Names of the classes, K.
        method: "linear" or "finetune".
        encoder: Its encoder; None for a model without weights.
        spec: Text of the model it was made from.
        head: Mean, scale, weights and bias.
        crop: How its crops are cut.
        contract: What it was trained on; None for one that was kept before this was recorded.
    """

    classes: tuple[str, ...]
    method: str
    spec: str
    encoder: Encoder | None = field(repr=False)
    head: LinearHead = field(repr=False)
    crop: CropSpec = FROM_SIZE
    contract: Contract | None = field(default=None, repr=False)

    def score_items(self, items: Iterable[Item], *, store: Store | None = None) -> ScoredItems:
        """Probabilities of each class for items of a table.

        Raises TaskError when no item can be used, or when they are of a kind that the model was not trained on.
        """
        items = tuple(items)
        if self.contract:
            self.contract.refuse_other_units(items)
        if self.method == "finetune" and self.encoder is not None:
            cut = cut_items(self.encoder.reader, items, store=store, crop=self.crop)
            if not len(cut):
                raise TaskError(f"no item can be used: {cut.refused[0].reason}" if cut.refused else "there are no items")
            outputs = FinetunedModel(encoder=self.encoder, head=self.head).predict(cut.crops)
            return ScoredItems(items=cut.items, scores=to_probabilities(outputs), hashes=cut.hashes, refused=cut.refused)
        model = self.encoder or parse_model(self.spec)
        features = extract_features(model, items, store=store, crop=self.crop)
        outputs = (features.values - self.head.mean) / self.head.scale @ self.head.weights.T + self.head.bias
        return ScoredItems(items=features.items, scores=to_probabilities(outputs), hashes=features.hashes, refused=features.refused)


def to_probabilities(outputs: NDArray) -> NDArray[np.float64]:
    """Softmax over the last axis."""
    powers = np.exp(np.asarray(outputs, dtype=np.float64) - outputs.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def make_head(probe: LinearProbe) -> LinearHead:
    """A probe as a head with an output for each class, whose softmax gives the probe's probabilities."""
    binary = len(probe.weights) == 1
    weights = np.concatenate([-probe.weights / 2, probe.weights / 2]) if binary else probe.weights
    bias = np.concatenate([-probe.bias / 2, probe.bias / 2]) if binary else probe.bias
    return LinearHead(mean=_single(probe.mean), scale=_single(probe.scale), weights=_single(weights), bias=_single(bias))


def save_classifier(classifier: Classifier, folder: str | Path) -> None:
    """Write the folder whole."""
    head = classifier.head
    with write_whole(folder) as temporary:
        temporary.mkdir()
        arrays = {"mean": head.mean, "scale": head.scale, "weights": head.weights, "bias": head.bias}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / "head.safetensors")
        if classifier.encoder is not None:
            classifier.encoder.save(temporary / "encoder")
        values = {
            "format": FORMAT,
            "task": "classify",
            "method": classifier.method,
            "model": classifier.spec,
            "classes": classifier.classes,
            "crop_mm": classifier.crop.mm,
            "crop_spacing": classifier.crop.spacing,
            "contract": classifier.contract.to_values() if classifier.contract else None,
        }
        (temporary / "classifier.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_classifier(folder: str | Path, *, device: str = "auto", precision: str = "fp32") -> Classifier:
    """The classifier of a folder (`OUT/model`, or OUT itself); raises TaskError when there is none, or it is damaged."""
    path = Path(folder)
    path = path / "model" if (path / "model" / "classifier.json").is_file() else path
    values = _read_values(path)
    try:
        arrays = load_file(path / "head.safetensors")
        head = LinearHead(**{name: arrays[name] for name in ("mean", "scale", "weights", "bias")})
    except (OSError, SafetensorError, KeyError) as error:
        raise TaskError(f"head.safetensors is damaged or missing ({error})", where=path, do="Repeat dagman classify") from None
    encoder = None
    if (path / "encoder").is_dir():
        encoder = load_encoder(path / "encoder", device=device, precision=precision)
    return Classifier(
        classes=tuple(values["classes"]),
        method=values["method"],
        spec=values["model"],
        encoder=encoder,
        head=head,
        crop=CropSpec(values["crop_mm"], values["crop_spacing"]),
        contract=read_contract(values.get("contract")),
    )


def describe_source(spec: ModelSpec) -> str:
    """What is written of a model's origin: no path of this machine."""
    return spec.name


def _read_values(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((path / "classifier.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskError(
            "holds no classifier (no classifier.json)", where=path, do="Give the --out folder of dagman classify"
        ) from None
    except ValueError as error:
        raise TaskError(f"classifier.json is damaged ({error})", where=path, do="Repeat dagman classify") from None
    if values.get("format") != FORMAT:
        raise TaskError("classifier.json is of another format", where=path, do="Repeat dagman classify with this version")
    return values


def _single(array: Sequence[float] | NDArray) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)
