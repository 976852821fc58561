"""Registry of the tasks' measures, keyed by their names in metrics.json: label, direction, and value at chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How tables and figures present a measure.

    Attributes:
        label: Name shown to readers.
        higher_is_better: False if lower is better; None if neither direction is.
        chance: Expected value for guessing; "1/K" for one over the number of classes; None if there is no such value.
    """

    label: str
    higher_is_better: bool | None = True
    chance: float | Literal["1/K"] | None = None


MEASURES: dict[str, Measure] = {
    "auc": Measure(label="AUC", chance=0.5),
    "accuracy": Measure(label="accuracy"),
    "balanced_accuracy": Measure(label="balanced accuracy", chance="1/K"),
    "sensitivity": Measure(label="sensitivity"),
    "specificity": Measure(label="specificity"),
    "brier": Measure(label="Brier score", higher_is_better=False),
    "harrell_c": Measure(label="Harrell's C", chance=0.5),
    "uno_c": Measure(label="Uno's C", chance=0.5),
    "dynamic_auc": Measure(label="time-dependent AUC", chance=0.5),
    "integrated_brier": Measure(label="integrated Brier score", higher_is_better=False),
    "r2": Measure(label="R²", chance=0.0),
    "mae": Measure(label="mean absolute error", higher_is_better=False),
    "rmse": Measure(label="root mean squared error", higher_is_better=False),
    "spearman": Measure(label="Spearman's ρ", chance=0.0),
    "dice": Measure(label="Dice"),
    "hd95_mm": Measure(label="HD95 (mm)", higher_is_better=False),
    "nsd": Measure(label="surface Dice"),
    "lesion_sensitivity": Measure(label="lesions found"),
    "false_positives": Measure(label="false positives per scan", higher_is_better=False),
    "volume_bias_ml": Measure(label="volume bias (ml)", higher_is_better=None),
    "neighbour_accuracy": Measure(label="nearest-neighbour accuracy"),
    "silhouette": Measure(label="silhouette"),
    "nmi": Measure(label="normalised mutual information"),
    "ari": Measure(label="adjusted Rand index", chance=0.0),
    "purity": Measure(label="purity"),
    "intra_distance": Measure(label="intra-cluster distance", higher_is_better=False),
    "inter_distance": Measure(label="inter-cluster distance"),
}


def register_measure(name: str, measure: Measure) -> None:
    """Add a measure to the registry.

    Raises:
        ValueError: The name is already registered.
    """
    if name in MEASURES:
        raise ValueError(f"the measure {name!r} is already registered")
    MEASURES[name] = measure


def find_measure(name: str) -> Measure:
    """Look up a measure such as "auc" or "dice:liver" (a single structure); an unregistered one is labelled by its name."""
    measure = name.partition(":")[0]
    return MEASURES.get(measure, Measure(label=measure.replace("_", " "), higher_is_better=None))


def find_chance(name: str, classes: int = 2) -> float | None:
    """Return the value that guessing reaches with the given number of classes, or None if there is no such value."""
    chance = find_measure(name).chance
    return 1 / max(classes, 1) if chance == "1/K" else chance
