"""Organs of patients that pretraining did not see, as frozen features: is the nearest one in another patient the same organ?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dagman.store.crops import CropSpec
from dagman.tables.table import Table
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.models import parse_model
from dagman.tasks.retrieval import retrieve_across_patients

CROP_MM = 128.0
BASELINES = (("raw pixels", "pixels"), ("intensity histogram", "histogram"), ("size alone", "radiomics:size"))
"""What needs no network: how the page calls it, and the model's name."""


def retrieve_organs(model: str, table: Table, patients: Sequence[str], *, spacing: float, cache: Path) -> float:
    """Share of the patients' organs whose nearest one in another of them is the same; features are read inside the masks."""
    items = [item for item in table.items if item.patient in set(patients)]
    found = extract_features(parse_model(model), items, crop=CropSpec(CROP_MM, spacing), cache=cache)
    return retrieve_across_patients(found.values, [str(i.label) for i in found.items], [i.patient for i in found.items])
