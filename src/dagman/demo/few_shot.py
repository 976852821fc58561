"""Segment organs after training on one or two labelled patients, from pretrained and from randomly initialised weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dagman.randomness import address, generator
from dagman.records.files import write_whole
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.reports.demo_report import Outlined
from dagman.tables.items import Item
from dagman.tables.structures import Structure
from dagman.tasks.models import load_network, parse_model
from dagman.tasks.segment.cases import Case, prepare_cases
from dagman.tasks.segment.model import SegmentationModel, adapt_encoder, load_segmenting, start_model
from dagman.tasks.segment.training import Fitting, cut_padded, fit_model, place_crop, validate_on_crops

SHOTS = (1, 2)
"""Numbers of labelled patients in a training."""
STRUCTURES = (
    Structure(name="lungs", values=(1, 2)),
    Structure(name="liver", values=(5,)),
    Structure(name="heart", values=(3,)),
)
"""Only large organs, because no network finds spleen and kidneys after so few steps."""
SIDE, SHOWN_SIDE = 32, 64
"""Side in voxels of training crops, and of the crop shown in the report."""
STEPS, RATE = 40, 3e-3


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """Data of the segmentation: items whose labels may be used, test items, the spacing in mm, and the training steps."""

    labelled: Sequence[Item]
    tested: Sequence[Item]
    spacing: float
    steps: int


def segment_few(pairs: Sequence[tuple[str, str]], seeds: Sequence[int], data: FewLabels, out: Path) -> list[dict[str, list[float]]]:
    """Train and test segmentations from few labels.

    Args:
        pairs: For each seed, the pretrained and the randomly initialised model. Both are trained on the same labelled patients and
            crops, with the same learning rate for all layers.
        seeds: The seeds.
        data: The labelled and the test items.
        out: Folder for a journal, from which an interrupted run resumes, and `example.npz`.

    Returns:
        For each of SHOTS, Dice on fixed crops of the test patients for "pretrained" and "fresh", one value per seed.
    """
    kept = {row["key"]: float(row["dice"]) for row in read_rows(out / "scores.jsonl")}
    found: list[dict[str, list[float]]] = [{"pretrained": [], "fresh": []} for _ in SHOTS]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepared-", dir=out, ignore_cleanup_errors=True) as folder:
        cases: list[Case] = []
        for pair, seed in zip(pairs, seeds, strict=True):
            for kind, name in zip(("pretrained", "fresh"), pair, strict=True):
                encoder = adapt_encoder(load_segmenting(load_network, parse_model(name)), side=SIDE, spacing=data.spacing)
                for values, shots in zip(found, SHOTS, strict=True):
                    used = [item.name for part in (data.labelled, data.tested) for item in part]
                    key = hash_bytes(f"1|{encoder.digest}|{seed}|{shots}|{data.spacing}|{data.steps}|{used}".encode())
                    if key not in kept:
                        cases = cases or prepare_cases(encoder, [*data.labelled, *data.tested], STRUCTURES, Path(folder))[0]
                        train, test = cases[: len(data.labelled)], cases[len(data.labelled) :]
                        drawn = generator(seed, "labelled patients").permutation(len(train))[:shots]
                        model = start_model(encoder, STRUCTURES, seed=seed)
                        fitting = Fitting(steps=data.steps, rate=RATE, seed=address(seed, "few labels", shots) % 2**31)
                        fit_model(model, [train[i] for i in drawn], [], fitting, lambda step, loss: None)
                        kept[key] = validate_on_crops(model, test, Fitting(steps=1))
                        if kind == "pretrained" and shots == SHOTS[-1] and seed == seeds[0]:
                            _keep_example(model, test[0], data.spacing, out / "example.npz")
                        append_row(out / "scores.jsonl", {"key": key, "dice": kept[key], "model": name, "shots": shots})
                    values[kind].append(kept[key])
    return found


def read_example(out: Path) -> Outlined | None:
    """Read the crop of a test patient that `segment_few` saved; None if there is none."""
    path = out / "example.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        names = tuple(structure.name for structure in STRUCTURES)
        return Outlined(
            voxels=kept["voxels"], truth=kept["truth"], predicted=kept["predicted"], spacing=float(kept["spacing"]), names=names
        )


@torch.inference_mode()
def _keep_example(model: SegmentationModel, case: Case, spacing: float, path: Path) -> None:
    shape = case.voxels.shape
    start = place_crop([size // 2 for size in shape], shape, SHOWN_SIDE)
    voxels = cut_padded(case.voxels, start, SHOWN_SIDE, model.encoder.pad_value(case.modality))
    with model.autocast():
        logits = model.network.eval()(model.scale_view(torch.from_numpy(voxels), case.modality)[None, None])
    predicted = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    truth = cut_padded(case.labels, start, SHOWN_SIDE, 0)
    with write_whole(path) as temporary:
        np.savez_compressed(temporary, voxels=voxels, truth=truth, predicted=predicted, spacing=spacing)
