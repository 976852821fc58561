"""A kept regression, as a folder: `regression.json`, `head.safetensors`, `encoder/`; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
from dagman.tasks.models import parse_model
from dagman.tasks.probes import RidgeProbe

FORMAT = 1
FILE = "regression.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedItems:
    """Numbers (n) of the items that could be used, in the order given, and who was refused."""

    items: tuple[Item, ...]
    values: NDArray[np.float64] = field(repr=False)
    hashes: tuple[str, ...] = field(default=(), repr=False)
    "Content hash of each item's scan."
    refused: tuple[RefusedItem, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionModel:
    """A ridge probe on features, or a fine-tuned encoder with its head; it predicts in the unit of its label."""

    label: str
    "The column it was fitted to."
    range: tuple[float, float]
    "Least and largest number it was fitted to."
    method: str
    "ridge or finetune."
    spec: str
    "Text of the model it was made from."
    encoder: Encoder | None = field(repr=False)
    head: LinearHead = field(repr=False)
    crop: CropSpec = FROM_SIZE
    contract: Contract | None = field(default=None, repr=False)

    def predict(self, items: Sequence[Item], *, store: Store | None = None) -> PredictedItems:
        """A number of each item of a table.

        Raises TaskError when no item can be used, or when they are of a kind that the model was not trained on.
        """
        if self.contract:
            self.contract.refuse_other_units(items)
        if self.method == "finetune" and self.encoder is not None:
            cut = cut_items(self.encoder.reader, items, store=store, crop=self.crop)
            if not len(cut):
                raise TaskError(f"no item can be used: {cut.refused[0].reason}" if cut.refused else "there are no items")
            outputs = FinetunedModel(encoder=self.encoder, head=self.head).predict(cut.crops)
            return PredictedItems(items=cut.items, values=outputs[:, 0], hashes=cut.hashes, refused=cut.refused)
        features = extract_features(self.encoder or parse_model(self.spec), items, store=store, crop=self.crop)
        outputs = (features.values - self.head.mean) / self.head.scale @ self.head.weights.T + self.head.bias
        values = np.asarray(outputs[:, 0], dtype=np.float64)
        return PredictedItems(items=features.items, values=values, hashes=features.hashes, refused=features.refused)


def make_ridge_head(probe: RidgeProbe) -> LinearHead:
    """A ridge probe as a head with one output."""
    arrays = {"mean": probe.mean, "scale": probe.scale, "weights": probe.weights[None], "bias": np.array([probe.bias])}
    return LinearHead(**{name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()})


def scale_head(head: LinearHead, *, scale: float, shift: float) -> LinearHead:
    """The head whose output is that of `head` times `scale` plus `shift`: from standardised numbers to the label's unit."""
    weights, bias = head.weights * np.float32(scale), head.bias * np.float32(scale) + np.float32(shift)
    return LinearHead(mean=head.mean, scale=head.scale, weights=weights, bias=bias)


def save_regression(model: RegressionModel, folder: str | Path) -> None:
    """Write the folder whole."""
    head = model.head
    values = {
        "format": FORMAT,
        "task": "regress",
        "label": model.label,
        "range": model.range,
        "method": model.method,
        "model": model.spec,
        "crop_mm": model.crop.mm,
        "crop_spacing": model.crop.spacing,
        "contract": model.contract.to_values() if model.contract else None,
    }
    with write_whole(folder) as temporary:
        temporary.mkdir()
        arrays = {"mean": head.mean, "scale": head.scale, "weights": head.weights, "bias": head.bias}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / "head.safetensors")
        if model.encoder is not None:
            model.encoder.save(temporary / "encoder")
        (temporary / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_regression(folder: str | Path, *, device: str = "auto") -> RegressionModel:
    """The model of a folder (`OUT/model`, or OUT itself); raises TaskError when there is none, or it is damaged."""
    path = Path(folder)
    path = path / "model" if (path / "model" / FILE).is_file() else path
    if not (path / FILE).is_file():
        raise TaskError(f"holds no regression (no {FILE})", where=path, do="Give the --out folder of dagman regress")
    try:
        values = json.loads((path / FILE).read_text(encoding="utf-8"))
        arrays = load_file(path / "head.safetensors")
        if values["format"] != FORMAT:
            raise TaskError(f"{FILE} is of another format", where=path, do="Repeat dagman regress with this version")
        encoder = load_encoder(path / "encoder", device=device) if (path / "encoder").is_dir() else None
        return RegressionModel(
            label=values["label"],
            range=tuple(values["range"]),
            method=values["method"],
            spec=values["model"],
            encoder=encoder,
            head=LinearHead(**{name: arrays[name] for name in ("mean", "scale", "weights", "bias")}),
            crop=CropSpec(values["crop_mm"], values["crop_spacing"]),
            contract=read_contract(values.get("contract")),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TaskError(f"is damaged ({error})", where=path, do="Repeat dagman regress") from None
