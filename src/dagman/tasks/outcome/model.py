"""Save and load the model of `dagman outcome`: `model/` with outcome.json, arrays.safetensors and encoder/; nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dagman.encoder.encoder import Encoder
from dagman.encoder.loading import load_encoder
from dagman.errors import TaskError
from dagman.records.files import write_whole
from dagman.store.crops import CropSpec
from dagman.tables.clinical import ClinicalColumn, ClinicalDesign
from dagman.tables.items import Item
from dagman.tables.patients import pool_patients
from dagman.tasks.contract import Contract, read_contract
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.models import parse_model
from dagman.tasks.outcome.cox import CoxModel
from dagman.tasks.survival_models import Design, Projection

FORMAT = 1
FILE = "outcome.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeModel:
    """Cox's elastic net on an encoder's features and clinical columns, with the cut-off between low and high risk."""

    source: str
    "The MODEL whose features it uses; an encoder is saved along with it."
    design: Design = field(repr=False)
    cox: CoxModel = field(repr=False)
    cut: float
    "Median risk of the training patients."
    times: NDArray[np.float64]
    crop: CropSpec
    encoder: Encoder | None = field(default=None, repr=False)
    contract: Contract | None = field(default=None, repr=False)
    "What it was trained on; None if it was saved before this was recorded."

    @property
    def clinical(self) -> tuple[str, ...]:
        """Clinical columns that it needs."""
        return tuple(column.name for column in self.design.clinical.columns) if self.design.clinical else ()

    def predict(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Predict risk, group ("low risk" or "high risk") and survival at each time, one row per patient.

        Raises:
            TaskError: Items lack clinical columns, or the model was not trained on items of this kind.
        """
        return self.predict_noted(items)[0]

    def predict_noted(self, items: Sequence[Item], *, dask: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
        """Like `predict`, along with notes on items in scans that the model was trained on."""
        contract = self.contract or Contract(units=(), clinical=self.clinical)
        contract.refuse_missing_columns(items)
        if self.contract and self.design.projection is not None:
            contract.refuse_other_units(items)
        notes: list[str] = []
        values = None
        if self.design.projection is not None:
            model = self.encoder or parse_model(self.source)
            features = extract_features(model, items, crop=self.crop, dask=dask)
            items, values = features.items, features.values
            notes = contract.note_training_items(features.hashes)
        patients = pool_patients(items)
        numbers = self.design.encode(None if values is None else patients.average(values), patients.clinical)
        risks, survival = self.cox.score(numbers), self.cox.survive(numbers, self.times)
        rows = [
            {
                "patient": name,
                "risk": float(risk),
                "group": "high risk" if risk > self.cut else "low risk",
                **{f"survival_{time:g}": float(chance) for time, chance in zip(self.times, class_probabilities, strict=True)},
            }
            for name, risk, class_probabilities in zip(patients.names, risks, survival, strict=True)
        ]
        return rows, notes


def save_outcome_model(model: OutcomeModel, folder: str | Path) -> None:
    """Write the model's folder."""
    projection, clinical = model.design.projection, model.design.clinical
    arrays = {"mean": model.cox.mean, "weights": model.cox.weights, "times": model.cox.times, "hazard": model.cox.hazard}
    if projection is not None:
        arrays |= {
            "projection_mean": projection.mean,
            "projection_scale": projection.scale,
            "projection_axes": np.ascontiguousarray(projection.axes),
        }
    values = {
        "format": FORMAT,
        "task": "outcome",
        "source": model.source,
        "cut": model.cut,
        "times": model.times.tolist(),
        "penalty": model.cox.penalty,
        "crop_mm": model.crop.mm,
        "crop_spacing": model.crop.spacing,
        "contract": model.contract.to_values() if model.contract else None,
        "clinical": None if clinical is None else [dataclasses.asdict(column) for column in clinical.columns],
    }
    with write_whole(folder) as temporary:
        temporary.mkdir()
        save_file(arrays, temporary / "arrays.safetensors")
        (temporary / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if model.encoder is not None:
            model.encoder.save(temporary / "encoder")


def load_outcome_model(folder: str | Path, *, device: str = "auto") -> OutcomeModel:
    """Load the model from a results folder's `model/`.

    Raises:
        TaskError: The model is missing, damaged, or of another format.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise TaskError(f"holds no model of an outcome (no {FILE})", where=folder, do="Give the folder `model` of dagman outcome")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        arrays = load_file(path.with_name("arrays.safetensors"))
        if values["format"] != FORMAT:
            raise TaskError(
                f"is of format {values['format']}; this version of dagman reads {FORMAT}", where=path, do="Run the task again"
            )
        columns = values["clinical"]
        clinical = None if columns is None else ClinicalDesign(columns=tuple(_read_column(column) for column in columns))
        projection = None
        if "projection_axes" in arrays:
            projection = Projection(
                mean=arrays["projection_mean"], scale=arrays["projection_scale"], axes=arrays["projection_axes"]
            )
        cox = CoxModel(
            mean=arrays["mean"],
            weights=arrays["weights"],
            times=arrays["times"],
            hazard=arrays["hazard"],
            penalty=values["penalty"],
        )
        inner = path.with_name("encoder")
        return OutcomeModel(
            source=values["source"],
            design=Design(projection=projection, clinical=clinical),
            cox=cox,
            cut=values["cut"],
            times=np.array(values["times"], dtype=np.float64),
            crop=CropSpec(values["crop_mm"], values["crop_spacing"]),
            encoder=load_encoder(inner, device=device) if inner.is_dir() else None,
            contract=read_contract(values.get("contract")),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TaskError(f"is damaged ({error})", where=path, do="Run the task again") from None


def _read_column(values: dict[str, Any]) -> ClinicalColumn:
    return ClinicalColumn(**{**values, "categories": tuple(values["categories"])})
