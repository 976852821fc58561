"""Save and load a regression as a folder with `regression.json`, `head.safetensors` and `encoder/`; nothing is pickled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dagman.errors import TaskError
from dagman.store.manifest import Store
from dagman.tables.items import Item
from dagman.tasks.finetuning import LinearHead
from dagman.tasks.head_models import HeadModel, PredictedItems, read_head_model, save_head_model
from dagman.tasks.probes import RidgeProbe

FILE = "regression.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionModel(HeadModel):
    """A ridge probe on features, or a fine-tuned encoder with its head; predictions are in the unit of the label.

    Attributes:
        label: Column of the training labels.
        range: Smallest and largest training label.
    """

    label: str
    range: tuple[float, float]

    def predict(self, items: Iterable[Item], *, store: Store | None = None, dask: str | None = None) -> PredictedItems:
        """Predict the number of each item; arguments and errors are those of `compute_outputs`."""
        found = self.compute_outputs(items, store=store, dask=dask)
        return replace(found, values=np.asarray(found.values[:, 0], dtype=np.float64))


def make_ridge_head(probe: RidgeProbe) -> LinearHead:
    """Convert a ridge probe to a head with one output."""
    arrays = {"mean": probe.mean, "scale": probe.scale, "weights": probe.weights[None], "bias": np.array([probe.bias])}
    return LinearHead(**{name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()})


def scale_head(head: LinearHead, *, scale: float, shift: float) -> LinearHead:
    """Return a head whose output is `scale` times that of `head` plus `shift`, from standardised values to the label's unit."""
    weights, bias = head.weights * np.float32(scale), head.bias * np.float32(scale) + np.float32(shift)
    return LinearHead(mean=head.mean, scale=head.scale, weights=weights, bias=bias)


def save_regression(model: RegressionModel, folder: str | Path) -> None:
    """Write a regression's folder."""
    save_head_model(model, folder, FILE, {"task": "regress", "label": model.label, "range": model.range})


def load_regression(folder: str | Path, *, device: str = "auto") -> RegressionModel:
    """Load a regression from `OUT/model`, given this folder or OUT; errors are those of `read_head_model`."""
    model, values = read_head_model(folder, FILE, "regress", device=device)
    try:
        return RegressionModel(**vars(model), label=values["label"], range=tuple(values["range"]))
    except (KeyError, TypeError) as error:
        raise TaskError(f"{FILE} is damaged ({error})", where=folder, do="Run dagman regress again") from None
