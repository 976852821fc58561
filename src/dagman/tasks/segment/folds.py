"""Train and test segmentations for each model, subset, split and draw, with a journal from which an interrupted run resumes.

Several models are compared on the same scans, splits and draws. Each prepares scans in its own way, and is tested on the grids of
the masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dagman.encoder.encoder import Encoder
from dagman.evaluation.segmentation_scores import MEASURES, METHOD, score_scan
from dagman.evaluation.splits import Indices, Split, Subset, draw_subset
from dagman.randomness import address
from dagman.records.hashes import hash_bytes
from dagman.records.journal import append_row, read_rows
from dagman.scans.label_files import renew_dicom_labels, write_dicom_labels, write_label_map
from dagman.scans.scan import Scan
from dagman.tables.structures import Structure
from dagman.tasks.contract import make_contract
from dagman.tasks.finetuning import hold_out
from dagman.tasks.segment.cases import Case, load_classes
from dagman.tasks.segment.model import SegmentationModel, save_model, start_model
from dagman.tasks.segment.training import Fitting, fit_model

LEAST_TO_HOLD = 5
"""Minimum number of training patients for holding out a fifth of them to choose the best weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A model in a comparison: its name, its encoder adapted to the task, and all scans as it prepares them."""

    name: str
    encoder: Encoder = field(repr=False)
    cases: tuple[Case, ...] = field(repr=False)


@dataclass(kw_only=True, eq=False)
class FoldRunner:
    """Trains and tests all candidates; writes label maps and the model of the first one to `out`."""

    candidates: tuple[Candidate, ...]
    structures: tuple[Structure, ...]
    splits: Sequence[Split]
    subsets: Sequence[Subset]
    fitting: Fitting
    tolerance: float
    out: Path
    notify: Callable[[str], None]
    given: bool
    "Whether the split was given; the saved model is then trained only on its training part."
    keep: bool = True
    "Whether to save a model."
    measures: tuple[str, ...] = MEASURES
    identified: bool = False
    "Whether DICOM SEGs contain the patient's identity from the source scans."

    def __post_init__(self) -> None:
        cases = self.candidates[0].cases
        self.patients: NDArray[np.str_] = np.array([case.item.patient for case in cases], dtype=str)
        self.journal = self.out / "scores.jsonl"
        self.kept = {row["key"]: row["rows"] for row in read_rows(self.journal)}
        draws = sum(subset.draws for subset in self.subsets)
        self.total = len(self.candidates) * len(self.splits) * draws + (self.keep and not self.given)
        self.done = 0
        self.remarks: list[str] = []

    def run(self) -> list[dict[str, Any]]:
        """Train and test everything, and write `out/model`.

        Returns rows of predictions.csv, one per candidate, subset, split, draw, scan and structure.
        """
        rows: list[dict[str, Any]] = []
        for candidate in self.candidates:
            for subset in self.subsets:
                for split in self.splits:
                    for draw in range(subset.draws):
                        rows += self._run_once(candidate, subset, split, draw)
        if self.keep:
            self._keep_final()
        return rows

    def choose_shown(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Choose the rows for the report's pictures and volumes: those of the first model with the most labels."""
        return rows[(rows["model"] == self.candidates[0].name) & (rows["subset"] == self.subsets[-1].name) & (rows["draw"] == 0)]

    def _run_once(self, candidate: Candidate, subset: Subset, split: Split, draw: int) -> list[dict[str, Any]]:
        chosen = draw_subset(
            split,
            np.zeros(len(self.patients)),
            self.patients,
            share=subset.share,
            per_class=subset.per_class,
            seed=self.fitting.seed,
            draw=draw,
        )
        shown = candidate is self.candidates[0] and split.repeat == 0 and subset is self.subsets[-1] and draw == 0
        final = shown and self.keep and self.given and subset.share == 1
        fitting = replace(self.fitting, seed=address(self.fitting.seed, "segment", split.repeat, split.fold, draw) % 2**31)
        key = self._name_job(candidate, fitting, chosen, split.val, split.test)
        maps = [self._map_path(candidate.cases[index]) for index in split.test] if shown else []
        there = all(path.is_file() for path in maps) and (not final or (self.out / "model").is_dir())
        if key not in self.kept or not there:
            drawn = f", draw {draw + 1}" if subset.draws > 1 else ""
            what = f"{candidate.name}, {subset.name} of the labels{drawn}, fold {split.fold + 1} of repeat {split.repeat + 1}"
            model = self._fit(candidate, fitting, chosen, split.val, what)
            rows = [row for index in split.test for row in self._test(model, candidate.cases[index], what, shown=shown)]
            if final:
                self._save(model, candidate, [*chosen, *split.val])
            self.kept[key] = rows
            append_row(self.journal, {"key": key, "rows": rows})
        elif shown:
            self._renew_maps([candidate.cases[index] for index in split.test])
        self.done += 1
        about = {"repeat": split.repeat, "fold": split.fold, "draw": draw, "subset": subset.name}
        return [{**row, **about, "model": candidate.name, "method": METHOD} for row in self.kept[key]]

    def _keep_final(self) -> None:
        """Save the first candidate's model, trained on all scans or on the training part of a given split."""
        candidate, everything = self.candidates[0], np.arange(len(self.patients))
        train, val = (self.splits[0].train, self.splits[0].val) if self.given else (everything, everything[:0])
        fitting = replace(self.fitting, seed=address(self.fitting.seed, "segment", "final") % 2**31)
        key = self._name_job(candidate, fitting, train, val, everything[:0])
        saved = self.given and self.subsets[-1].share == 1
        if saved or (key in self.kept and (self.out / "model").is_dir()):
            return
        self._save(self._fit(candidate, fitting, train, val, f"{candidate.name}, the final model"), candidate, train)
        append_row(self.journal, {"key": key, "rows": []})

    def _fit(self, candidate: Candidate, fitting: Fitting, chosen: Indices, val: Indices, what: str) -> SegmentationModel:
        fit, held = chosen, val
        if not len(val) and len(set(self.patients[chosen].tolist())) >= LEAST_TO_HOLD:
            fit, held = hold_out(self.patients, np.zeros(len(self.patients)), chosen, seed=fitting.seed)
        model = start_model(candidate.encoder, self.structures, mirrored=fitting.mirror, seed=fitting.seed)
        began = time.monotonic()

        def predict_as(step: int, loss: float) -> None:
            left = (time.monotonic() - began) / step * (fitting.steps - step)
            self.notify(
                f"training {self.done + 1} of {self.total} ({what}): step {step} of {fitting.steps}, loss {loss:.2f}, "
                f"{left / 60:.1f} minutes left"
            )

        cases = [candidate.cases[index] for index in fit]
        self._remark_unseen(cases, what)
        fit_model(model, cases, [candidate.cases[index] for index in held], fitting, predict_as)
        return model

    def _remark_unseen(self, cases: Sequence[Case], what: str) -> None:
        """Note structures that are missing in all training scans, and cannot be learnt by any model."""
        names = [
            structure.name for code, structure in enumerate(self.structures) if not any(len(case.places[code]) for case in cases)
        ]
        if names:
            self.remarks.append(f"{what}: no training scan contains {', '.join(names)}")

    def _test(self, model: SegmentationModel, case: Case, what: str, *, shown: bool) -> list[dict[str, Any]]:
        """Score a scan on the grid of its mask; its label map is written if it is shown in the report."""
        self.notify(f"testing ({what}): {case.item.name}")
        scan = model.encoder.read(case.item.scan)
        predicted = model.label_scan(scan, mirror=self.fitting.mirror)
        truth = load_classes(case.item, scan, self.structures)
        if shown:
            self._write_maps(model, predicted, scan, case)
        scores = score_scan(
            predicted, truth, self.structures, scan.spacing, self.tolerance, contoured=case.contoured, measures=self.measures
        )
        return [{"item": case.item.name, "patient": case.item.patient, **row} for row in scores]

    def _write_maps(self, model: SegmentationModel, predicted: NDArray[np.uint8], scan: Scan, case: Case) -> None:
        values, path = model.to_values(predicted), self._map_path(case)
        write_label_map(path, values, scan)
        place = path.with_name(f"{case.item.name}.dcm")
        self._remark(write_dicom_labels(place, values, model.names, case.item.scan, identified=self.identified))

    def _renew_maps(self, cases: Sequence[Case]) -> None:
        names = {one.values[0]: one.name for one in self.structures}
        for case in cases:
            place = self._map_path(case).with_name(f"{case.item.name}.dcm")
            self._remark(renew_dicom_labels(place, names, case.item.scan, identified=self.identified))

    def _remark(self, text: str) -> None:
        if text and text not in self.remarks:
            self.remarks.append(text)

    def _map_path(self, case: Case) -> Path:
        return self.out / "predictions" / f"{case.item.name}.nii.gz"

    def _save(self, model: SegmentationModel, candidate: Candidate, chosen: Sequence[int] | Indices) -> None:
        cases = [candidate.cases[index] for index in chosen]
        contract = make_contract(
            [case.item for case in cases],
            [case.content_hash for case in cases],
            # Masks are targets, not inputs.
            units=("scan",),
            labels=[one.name for one in self.structures],
            spacing=model.encoder.config.spacing,
            modalities=[case.modality for case in cases],
        )
        save_model(replace(model, contract=contract), self.out / "model")

    def _name_job(self, candidate: Candidate, fitting: Fitting, *parts: Indices) -> str:
        """Hash everything that a training and its test depend on."""
        named = [[self._name_case(candidate.cases[index]) for index in part] for part in parts]
        values = f"1|{candidate.encoder.digest}|{candidate.encoder.precision}|{fitting}|{self.structures}|{self.tolerance}|{named}"
        # The default set of measures adds nothing to the key, so that older journals stay valid.
        return hash_bytes((values if self.measures == MEASURES else f"{values}|{self.measures}").encode())

    @staticmethod
    def _name_case(case: Case) -> tuple[object, ...]:
        # Without unknown structures, nothing is added to the key, so that older journals stay valid.
        known = () if case.contoured is None else (case.contoured,)
        return case.item.name, case.labels_hash, case.content_hash, *known
