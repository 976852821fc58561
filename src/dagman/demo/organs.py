"""Retrieve organs across patients that were not seen in pretraining, by their frozen features."""

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
"""Baselines without a network: label in the report, and MODEL."""


def retrieve_organs(model: str, table: Table, patients: Sequence[str], *, spacing: float, cache: Path) -> float:
    """Compute the share of the patients' organs whose nearest organ of another patient is the same.

    Features are pooled inside the masks; `spacing` is in mm, and `cache` is the folder of feature vectors.
    """
    items = [item for item in table.items if item.patient in set(patients)]
    found = extract_features(parse_model(model), items, crop=CropSpec(CROP_MM, spacing), cache=cache)
    return retrieve_across_patients(found.values, [str(i.label) for i in found.items], [i.patient for i in found.items])
