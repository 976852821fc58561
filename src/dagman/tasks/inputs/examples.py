"""The most and the least certain items, right and wrong, kept with their crops (and attention) for the report's pictures."""

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
"""Items shown of each of the four kinds."""
FILE = "examples.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One item: its crop in HU (X Y Z), where was pooled, the attention relative to uniform (x y z) or None, and what was said.

    `kind` is such as "most certain, wrong"; `probability` is that of the predicted class; `words` stand in their place where an
    item has no classes, but a risk. `within` is what of the crop is scan, as in `store.crops.Crop`; older files hold neither it
    nor patient and file.
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
    """Places (into labels n, scores n K) of the most and least certain items, right and wrong, with the name of their kind."""
    predicted, certainty = scores.argmax(axis=1), scores.max(axis=1)
    chosen: list[tuple[int, str]] = []
    taken: set[int] = set()
    for certain in ("most certain", "least certain"):
        for outcome in ("right", "wrong"):
            places = np.flatnonzero((predicted == labels) == (outcome == "right"))
            order = places[np.argsort(certainty[places] * (-1 if certain.startswith("most") else 1), kind="stable")]
            new = [int(place) for place in order if int(place) not in taken][:each]
            taken.update(new)
            chosen += [(place, f"{certain}, {outcome}") for place in new]
    return chosen


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An item to be kept with its crop: its kind, and what was predicted of it, as in `Example`."""

    item: Item
    kind: str
    label: str = ""
    predicted: str = ""
    probability: float | None = None
    words: str = ""


def choose_scored(inputs: TaskInputs, scored: Scored, items: Mapping[str, Item]) -> list[Chosen]:
    """The most and least certain of what was scored; `items` gives each by its name in `scored`."""
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
    """Write examples.npz whole: the chosen items' crops, with the attention of the first model."""
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
    """Which model and method they are of, and the examples; none where the file is absent. Raises TaskError when it is damaged."""
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
    """Attention over heads relative to uniform, on units; None where the network has no semantic attention."""
    if encoder.config.semantic is None:
        return None
    heads = encoder.attend(torch.from_numpy(crop.voxels)[None, None], modality=crop.modality)[0]
    # The softmax runs over all units and the [CLS] token itself.
    relative: NDArray[np.float32] = (heads.mean(dim=0) * (heads[0].numel() + 1)).float().cpu().numpy()
    return relative
