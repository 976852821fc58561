"""Every measure of the tasks by its name in metrics.json: what readers call it, which way is better, what chance reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What tables and figures need to know of a measure.

    Attributes:
        label: What readers know it as.
        higher_is_better: False where less is better; None where neither is.
        chance: What guessing reaches; "1/K" for one over the number of classes; None where there is no such value.
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
    """Add a measure; a name taken is an error."""
    if name in MEASURES:
        raise ValueError(f"the measure {name!r} is already registered")
    MEASURES[name] = measure


def find_measure(name: str) -> Measure:
    """The measure of a name such as "auc", or "dice:liver" of one structure; by its own name where it is not registered."""
    measure = name.partition(":")[0]
    return MEASURES.get(measure, Measure(label=measure.replace("_", " "), higher_is_better=None))


def find_chance(name: str, classes: int = 2) -> float | None:
    """What guessing reaches among so many classes, or None."""
    chance = find_measure(name).chance
    return 1 / max(classes, 1) if chance == "1/K" else chance
