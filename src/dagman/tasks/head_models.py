"""Saved models with a linear head on an encoder's features, as folders with a JSON file, `head.safetensors` and `encoder/`.

A classifier predicts probabilities, a regression (`dagman.tasks.regress`) a number. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dagman.encoder.cluster.dask_features import EncoderName, refuse_lost, spread_scans
from dagman.encoder.encoder import Encoder
from dagman.encoder.inputs.opening import Grid
from dagman.encoder.items import RefusedItem, choose_item_crop
from dagman.encoder.loading import load_encoder
from dagman.errors import TaskError
from dagman.records.files import write_whole
from dagman.store.crops import FROM_SIZE, CropSpec
from dagman.store.manifest import Store
from dagman.store.workers import Lost
from dagman.tables.items import Item
from dagman.tasks.contract import Contract, read_contract
from dagman.tasks.finetuning import FinetunedModel, LinearHead
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.inputs.item_crops import cut_items
from dagman.tasks.models import ModelSpec, parse_model
from dagman.tasks.probes import LinearProbe

FORMAT = 1
_CLASSIFIER = "classifier.json"
_ARRAYS = ("mean", "scale", "weights", "bias")


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedItems:
    """Predictions for the items that could be used, in the given order, and the rejected items."""

    items: tuple[Item, ...]
    values: NDArray[np.float64] = field(repr=False)
    "Outputs of the head (n x K), probabilities of a classifier (n x K), or values of a regression (n)."
    hashes: tuple[str, ...] = field(default=(), repr=False)
    "Content hash of each item's scan."
    refused: tuple[RefusedItem, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadModel:
    """A head on frozen features, or a fine-tuned encoder with its head.

    Attributes:
        method: "finetune", or the name of the probe.
        spec: The model it was made from.
        encoder: The encoder; None for a baseline without a network.
        head: Mean, scale, weights and bias.
        crop: How its crops are cut.
        contract: What it was trained on; None if it was saved before this was recorded.
    """

    method: str
    spec: str
    encoder: Encoder | None = field(repr=False)
    head: LinearHead = field(repr=False)
    crop: CropSpec = FROM_SIZE
    contract: Contract | None = field(default=None, repr=False)

    def compute_outputs(self, items: Iterable[Item], *, store: Store | None = None, dask: str | None = None) -> PredictedItems:
        """Compute the outputs of the head for items of a table.

        Args:
            items: The items.
            store: Store to read scans from, if they are in it.
            dask: Address of a Dask scheduler, as in `stream_features`; the outputs are bit-identical.

        Raises:
            TaskError: No item can be used, or the model was not trained on items of this kind.
        """
        items = tuple(items)
        if self.contract:
            self.contract.refuse_other_units(items)
        if self.method == "finetune" and self.encoder is not None:
            found = self._run_network(self.encoder, items, store, dask)
            if not found.items:
                raise TaskError(f"no item can be used: {found.refused[0].reason}" if found.refused else "there are no items")
            return found
        features = extract_features(self.encoder or parse_model(self.spec), items, store=store, crop=self.crop, dask=dask)
        outputs = (features.values - self.head.mean) / self.head.scale @ self.head.weights.T + self.head.bias
        return PredictedItems(items=features.items, values=outputs, hashes=features.hashes, refused=features.refused)

    def _run_network(self, encoder: Encoder, items: Sequence[Item], store: Store | None, dask: str | None) -> PredictedItems:
        if dask is None:
            return _run_finetuned(FinetunedModel(encoder=encoder, head=self.head), store, self.crop, None, items)
        crop = choose_item_crop(items, encoder.reader, self.crop)
        work = partial(_run_scan, EncoderName.of(encoder), self.head, store, crop)
        parts = [
            (PredictedItems(items=(), values=np.empty((0, len(self.head.bias))), refused=tuple(refuse_lost(of, part))))
            if isinstance(part, Lost)
            else part
            for of, part in spread_scans(work, items, dask)
        ]
        rows = [row for part in parts for row in zip(part.items, part.values, part.hashes, strict=True)]
        rows.sort(key=lambda row: row[0].index)
        return PredictedItems(
            items=tuple(item for item, _, _ in rows),
            values=np.array([values for _, values, _ in rows], dtype=np.float64).reshape(-1, len(self.head.bias)),
            hashes=tuple(content for _, _, content in rows),
            refused=tuple(sorted((one for part in parts for one in part.refused), key=lambda one: one.item.index)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier(HeadModel):
    """A linear probe or a fine-tuned encoder that predicts K classes, whose names are in `classes`."""

    classes: tuple[str, ...]

    def score_items(self, items: Iterable[Item], *, store: Store | None = None, dask: str | None = None) -> PredictedItems:
        """Compute class probabilities (n x K) for items of a table; arguments and errors are those of `compute_outputs`."""
        found = self.compute_outputs(items, store=store, dask=dask)
        return replace(found, values=to_probabilities(found.values))


def _run_scan(
    name: EncoderName, head: LinearHead, store: Store | None, crop: CropSpec, items: Sequence[Item]
) -> tuple[PredictedItems, list[Grid]]:
    grids: list[Grid] = []
    return _run_finetuned(FinetunedModel(encoder=name.load(), head=head), store, crop, grids, items), grids


def _run_finetuned(
    model: FinetunedModel, store: Store | None, crop: CropSpec, grids: list[Grid] | None, items: Sequence[Item]
) -> PredictedItems:
    cut = cut_items(model.encoder.reader, items, store=store, crop=crop, grids=grids)
    return PredictedItems(items=cut.items, values=model.predict(cut.crops), hashes=cut.hashes, refused=cut.refused)


def to_probabilities(outputs: NDArray) -> NDArray[np.float64]:
    """Apply softmax over the last axis."""
    powers = np.exp(np.asarray(outputs, dtype=np.float64) - outputs.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def make_head(probe: LinearProbe) -> LinearHead:
    """Convert a probe to a head with one output per class, whose softmax equals the probe's probabilities."""
    binary = len(probe.weights) == 1
    weights = np.concatenate([-probe.weights / 2, probe.weights / 2]) if binary else probe.weights
    bias = np.concatenate([-probe.bias / 2, probe.bias / 2]) if binary else probe.bias
    return LinearHead(mean=_single(probe.mean), scale=_single(probe.scale), weights=_single(weights), bias=_single(bias))


def save_head_model(model: HeadModel, folder: str | Path, file: str, values: Mapping[str, Any]) -> None:
    """Write a model's folder; `file` contains `values` and the values that all head models have."""
    shared = {
        "format": FORMAT,
        "method": model.method,
        "model": model.spec,
        "crop_mm": model.crop.mm,
        "crop_spacing": model.crop.spacing,
        "contract": model.contract.to_values() if model.contract else None,
    }
    with write_whole(folder) as temporary:
        temporary.mkdir()
        arrays = {name: np.ascontiguousarray(getattr(model.head, name)) for name in _ARRAYS}
        save_file(arrays, temporary / "head.safetensors")
        if model.encoder is not None:
            model.encoder.save(temporary / "encoder")
        (temporary / file).write_text(json.dumps({**values, **shared}, indent=2) + "\n", encoding="utf-8")


def read_head_model(
    folder: str | Path, file: str, task: str, *, device: str = "auto", precision: str = "fp32"
) -> tuple[HeadModel, dict[str, Any]]:
    """Read a model from `OUT/model`, given either this folder or OUT, along with the values of `file`.

    Raises:
        TaskError: The folder holds no model of the task, or the model is damaged.
    """
    path = Path(folder)
    path = path / "model" if (path / "model" / file).is_file() else path
    values = _read_values(path, file, task)
    try:
        arrays = load_file(path / "head.safetensors")
        head = LinearHead(**{name: arrays[name] for name in _ARRAYS})
    except (OSError, SafetensorError, KeyError) as error:
        raise TaskError(f"head.safetensors is damaged or missing ({error})", where=path, do=f"Run dagman {task} again") from None
    there = (path / "encoder").is_dir()
    encoder = load_encoder(path / "encoder", device=device, precision=precision) if there else None
    try:
        model = HeadModel(
            method=values["method"],
            spec=values["model"],
            encoder=encoder,
            head=head,
            crop=CropSpec(values["crop_mm"], values["crop_spacing"]),
            contract=read_contract(values.get("contract")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(f"{file} is damaged ({error})", where=path, do=f"Run dagman {task} again") from None
    return model, values


def save_classifier(classifier: Classifier, folder: str | Path) -> None:
    """Write a classifier's folder."""
    save_head_model(classifier, folder, _CLASSIFIER, {"task": "classify", "classes": classifier.classes})


def load_classifier(folder: str | Path, *, device: str = "auto", precision: str = "fp32") -> Classifier:
    """Load a classifier from its folder; errors are those of `read_head_model`."""
    model, values = read_head_model(folder, _CLASSIFIER, "classify", device=device, precision=precision)
    return Classifier(**vars(model), classes=tuple(values["classes"]))


def describe_source(spec: ModelSpec) -> str:
    """Describe a model's origin without paths of this machine."""
    return spec.name


def _read_values(path: Path, file: str, task: str) -> dict[str, Any]:
    again = f"Run dagman {task} again"
    try:
        values: dict[str, Any] = json.loads((path / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        kind = Path(file).stem
        do = f"Give the --out folder of dagman {task}"
        raise TaskError(f"holds no {kind} (no {file})", where=path, do=do) from None
    except (OSError, ValueError) as error:
        raise TaskError(f"{file} is damaged ({error})", where=path, do=again) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise TaskError(f"{file} has another format", where=path, do=f"{again} with this version")
    return values


def _single(array: Sequence[float] | NDArray) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)
