"""Save example items with their crops and attention for the report's pictures."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.encoder.reader import ANY_SCAN
from dagman.errors import TaskError
from dagman.evaluation.classification_measures import Scored
from dagman.records.files import write_whole
from dagman.store.crops import Reach
from dagman.store.manifest import Store
from dagman.tables.items import Item
from dagman.tasks.inputs.item_crops import ItemCrop, cut_items
from dagman.tasks.inputs.model_inputs import TaskInputs

EACH = 3
"""Number of items of each of the four kinds."""
FILE = "examples.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An example item with its crop and prediction.

    Attributes:
        name: Name of the item.
        kind: Why it was chosen, such as "most certain, wrong".
        label: True class.
        predicted: Predicted class.
        probability: Probability of the predicted class.
        spacing: Voxel size in mm.
        modality: Modality of the scan.
        voxels: The crop in HU, X Y Z.
        inside: Voxels over which features were pooled.
        attention: Attention relative to uniform, x y z; None without semantic attention.
        patient: The patient; empty in older files.
        file: File name of the scan; empty in older files.
        within: Part of the crop inside the scan, as in `store.crops.Crop`; None in older files.
        words: The prediction in words, if there are no classes.
    """

    name: str
    kind: str
    label: str
    predicted: str
    probability: float | None
    spacing: float
    modality: str
    voxels: NDArray[np.int16] = field(repr=False)
    inside: NDArray[np.bool_] = field(repr=False)
    attention: NDArray[np.float32] | None = field(repr=False)
    patient: str = ""
    file: str = ""
    within: Reach | None = None
    words: str = ""


def choose_examples(labels: NDArray, scores: NDArray, each: int = EACH) -> list[tuple[int, str]]:
    """Choose the most and least certain items, right and wrong, from labels (n) and scores (n K); returns indices and kinds."""
    predicted, certainty = scores.argmax(axis=1), scores.max(axis=1)
    chosen: list[tuple[int, str]] = []
    taken: set[int] = set()
    for certain in ("most certain", "least certain"):
        for outcome in ("right", "wrong"):
            rows = np.flatnonzero((predicted == labels) == (outcome == "right"))
            order = rows[np.argsort(certainty[rows] * (-1 if certain.startswith("most") else 1), kind="stable")]
            new = [int(row) for row in order if int(row) not in taken][:each]
            taken.update(new)
            chosen += [(row, f"{certain}, {outcome}") for row in new]
    return chosen


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An item chosen as an example; fields are those of `Example`."""

    item: Item
    kind: str
    label: str = ""
    predicted: str = ""
    probability: float | None = None
    words: str = ""


def choose_scored(inputs: TaskInputs, scored: Scored, items: Mapping[str, Item]) -> list[Chosen]:
    """Choose the most and least certain of the scored items; `items` maps their names in `scored` to items."""
    classes = inputs.table.classes
    return [
        Chosen(
            item=items[scored.names[place]],
            kind=kind,
            label=classes[int(scored.labels[place])],
            predicted=classes[int(scored.mean_scores[place].argmax())],
            probability=float(scored.mean_scores[place].max()),
        )
        for place, kind in choose_examples(scored.labels, scored.mean_scores)
    ]


def write_examples(
    folder: str | Path, inputs: TaskInputs, chosen: Sequence[Chosen], *, model: str, method: str, store: Store | None = None
) -> None:
    """Write examples.npz with the crops of the chosen items and the attention of the first model."""
    encoder = inputs.models[0].encoder
    cut = cut_items(encoder.reader if encoder else ANY_SCAN, [one.item for one in chosen], store=store, crop=inputs.crop)
    crops = dict(zip([item.name for item in cut.items], cut.crops, strict=True))
    described: list[dict[str, Any]] = []
    arrays: dict[str, NDArray] = {}
    for one in chosen:
        crop, number = crops[one.item.name], len(described)
        described.append(
            {
                "name": one.item.name,
                "kind": one.kind,
                "label": one.label,
                "predicted": one.predicted,
                "probability": one.probability,
                "words": one.words,
                "spacing": crop.spacing,
                "modality": crop.modality,
                "patient": one.item.patient,
                "file": Path(one.item.scan).name,
                "within": crop.within,
            }
        )
        arrays[f"voxels_{number}"], arrays[f"inside_{number}"] = crop.voxels, crop.inside
        attention = _attend(encoder, crop) if encoder is not None else None
        if attention is not None:
            arrays[f"attention_{number}"] = attention
    text = json.dumps({"model": model, "method": method, "items": described})
    with write_whole(Path(folder) / FILE) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, about=np.array(text), **arrays)


def read_examples(folder: str | Path) -> tuple[str, list[Example]]:
    """Read the examples, along with their model and method; returns no examples if there is no file.

    Raises:
        TaskError: The file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return "", []
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            examples = [
                Example(
                    **described,
                    voxels=file[f"voxels_{number}"],
                    inside=file[f"inside_{number}"],
                    attention=file.get(f"attention_{number}"),
                )
                for number, described in enumerate(about["items"])
            ]
        return f"{about['model']}, {about['method']}", examples
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TaskError(f"is damaged: {error}", where=path, do="Delete it, and run the task again") from None


def _attend(encoder: Encoder, crop: ItemCrop) -> NDArray[np.float32] | None:
    """Compute the mean attention over heads relative to uniform, on units; None without semantic attention."""
    if encoder.config.semantic is None:
        return None
    heads = encoder.attend(torch.from_numpy(crop.voxels)[None, None], modality=crop.modality)[0]
    # The softmax runs over all units and the [CLS] token itself.
    relative: NDArray[np.float32] = (heads.mean(dim=0) * (heads[0].numel() + 1)).float().cpu().numpy()
    return relative
