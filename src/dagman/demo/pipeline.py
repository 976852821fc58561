"""The demo's pipeline: cohort, store, pretrainings, comparisons with randomly initialised networks, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagman import __version__, devices
from dagman.demo.few_shot import SHOTS, STEPS, STRUCTURES, FewLabels, read_example, segment_few
from dagman.demo.organs import BASELINES, retrieve_organs
from dagman.records.counts import count_noun
from dagman.records.files import write_json
from dagman.records.provenance import write_command
from dagman.reports.demo_report import Demo, write_demo_report
from dagman.reports.run.run_page import write_run_report
from dagman.scans.phantom import Cohort, name_cohort, write_cohort
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.tables.table import read_table
from dagman.tasks.seeds import SeedComparison
from dagman.training.pretraining import pretrain
from dagman.training.run import Run

PATIENTS, SEEDS, PRETRAINING_STEPS = 24, (0, 1, 2), 50
SPACING = 4.0
"""Voxel size in mm of everything in the demo; a view of 64 voxels then contains most of a trunk."""
LABELLED = 8
"""Number of patients from whom the labelled ones are drawn; pretraining used their scans, but not their labels."""
HELD_OUT = 4
"""One in this many patients (at least two in total) is held out from pretraining."""
_TIMES = "seconds.json"
Notify = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of the demo: the report, the runs, the comparisons, and the seconds of each part.

    `earlier` is the total of seconds in earlier runs of the command, which `seconds` include.
    """

    report: Path
    runs: tuple[Run, ...]
    comparisons: tuple[SeedComparison, ...]
    seconds: dict[str, float]
    earlier: float = 0.0


def run_demo(
    out: str | Path,
    *,
    patients: int = PATIENTS,
    seeds: Sequence[int] = SEEDS,
    steps: int = PRETRAINING_STEPS,
    few_shot_steps: int = STEPS,
    assignments: Sequence[str] = (),
    notify: Notify | None = None,
) -> DemoResult:
    """Run the demo in the folder `out`, resuming an earlier run.

    Args:
        out: Folder for the cohort, the store, the runs, the segmentations and the report.
        patients: Size of the cohort, 5 or more; a quarter is held out from pretraining for testing.
        seeds: Seeds; each has a pretraining, a randomly initialised network, and a draw of the labelled patients.
        steps: Steps of a pretraining.
        few_shot_steps: Steps of a segmentation's training.
        assignments: Further settings of the pretrainings, "key=value".
        notify: Called with "part" when a part begins, and with the events of `dagman.pretrain`.
    """
    out, notify = Path(out), notify or (lambda name, values: None)
    devices.tune_allocator()
    clock = _Clock(notify, out / _TIMES)

    clock.start("cohort", f"writing {patients} synthetic CTs")
    cohort = _write_cohort(out / "cohort", patients)
    names = sorted(path.name.removesuffix(".nii.gz") for path in cohort.scans.iterdir())
    held_out = names[-max(2, patients // HELD_OUT) :]
    seen = names[: -len(held_out)]

    clock.start("prepare", f"preparing {len(seen)} of them; {len(held_out)} are held out for testing")
    # In this process, because workers take longer to start than these small scans to prepare.
    prepare_store([cohort.scans / f"{name}.nii.gz" for name in seen], out / "store", Preparation(spacing=SPACING), workers=1)

    runs = _pretrain_seeds(out, seeds, steps, assignments, clock)
    pairs = [(str(run.path), f"scratch:tiny:{seed}") for run, seed in zip(runs, seeds, strict=True)]
    table = read_table(cohort.organs_table, label="label")
    clock.start("segment", f"segmenting after {SHOTS[0]} and {SHOTS[-1]} labelled patients")
    # The table has one row per organ; the first row of each patient provides the scan.
    whole = {item.patient: item for item in reversed(table.items)}
    few = FewLabels(
        labelled=[whole[name] for name in seen[:LABELLED]],
        tested=[whole[name] for name in held_out],
        spacing=SPACING,
        steps=few_shot_steps,
    )
    segmented = segment_few(pairs, seeds, few, out / "few-shot")

    clock.start("retrieve", f"retrieving the organs of {len(held_out)} patients across patients")
    retrieved = {
        name: retrieve_organs(name, table, held_out, spacing=SPACING, cache=out / "features")
        for name in dict.fromkeys([*(name for pair in pairs for name in pair), *(spec for _, spec in BASELINES)])
    }

    clock.start("report", "writing the reports")
    comparisons = (
        *(_compare_segmentations(values, shots) for values, shots in zip(segmented, SHOTS, strict=True)),
        _compare_retrievals(retrieved, pairs),
        _compare_reconstructions(runs),
    )
    for run in runs:
        write_run_report(run)
    seconds = clock.stop()
    demo = Demo(
        runs=runs,
        example=read_example(out / "few-shot"),
        comparisons=comparisons,
        seconds=seconds,
        earlier=clock.earlier,
        held_out=len(held_out),
        few_shot_steps=few_shot_steps,
    )
    report = write_demo_report(out, demo)
    values = [one.to_values() for one in comparisons]
    write_json(out / "comparisons.json", {"seeds": list(seeds), "comparisons": values, "seconds": seconds})
    asked = {"patients": patients, "seeds": list(seeds), "steps": steps, "few_shot_steps": few_shot_steps}
    write_command(out, "demo", settings={**asked, "set": list(assignments)})
    return DemoResult(report=report, runs=tuple(runs), comparisons=comparisons, seconds=seconds, earlier=clock.earlier)


def _write_cohort(folder: Path, patients: int) -> Cohort:
    """Write the cohort, unless the same version has already written it completely."""
    made, wanted = folder / "made.json", {"patients": patients, "spacing": SPACING, "version": __version__}
    if made.is_file() and json.loads(made.read_text(encoding="utf-8")) == wanted:
        return name_cohort(folder)
    cohort = write_cohort(folder, patients=patients, seed=0, spacing=SPACING)
    write_json(made, wanted)
    return cohort


def _pretrain_seeds(out: Path, seeds: Sequence[int], steps: int, assignments: Sequence[str], clock: _Clock) -> list[Run]:
    runs = []
    for number, seed in enumerate(seeds, start=1):
        clock.start("pretrain", f"pretraining, seed {seed} ({number} of {len(seeds)})")
        settings = [f"train.steps={steps}", f"seed={seed}", *assignments]
        run = pretrain(out / "store", out / "runs" / f"seed-{seed}", size="tiny", assignments=settings, on_event=clock.notify)
        if run.last_step < steps:
            # After Ctrl-C the run stops at the end of a step; the demo stops as well, and resumes from there when repeated.
            clock.stop()
            raise KeyboardInterrupt
        runs.append(run)
    return runs


def _compare_segmentations(values: dict[str, list[float]], shots: int) -> SeedComparison:
    *names, last = (structure.name for structure in STRUCTURES)
    return SeedComparison(
        question=f"segmentation of {', '.join(names)} and {last} from {count_noun(shots, 'labelled patient')}",
        measure="Dice",
        pretrained=tuple(values["pretrained"]),
        fresh=tuple(values["fresh"]),
    )


def _compare_retrievals(retrieved: dict[str, float], pairs: Sequence[tuple[str, str]]) -> SeedComparison:
    return SeedComparison(
        question="organ retrieval across patients",
        measure="top-1 accuracy",
        pretrained=tuple(retrieved[ours] for ours, _ in pairs),
        fresh=tuple(retrieved[fresh] for _, fresh in pairs),
        others=tuple((name, retrieved[spec]) for name, spec in BASELINES),
    )


def _compare_reconstructions(runs: Sequence[Run]) -> SeedComparison:
    """Compare the exported teacher's last validation with that of the same network before its first step."""
    validations = [(run.monitors[-1]["reconstruction"], run.monitors[0]["reconstruction"]) for run in runs]
    return SeedComparison(
        question="masked-voxel reconstruction",
        measure="L1 / best trivial baseline; lower is better",
        pretrained=tuple(_read_ratio(last) for last, _ in validations),
        fresh=tuple(_read_ratio(first) for _, first in validations),
        rising=False,
        others=(("best trivial baseline", 1.0),),
    )


def _read_ratio(restored: dict[str, float]) -> float:
    return restored.get("teacher_ratio", restored["ratio"])


class _Clock:
    """Measures the seconds of each part and saves them; parts of the same name add up, including those of earlier runs."""

    def __init__(self, notify: Notify, kept: Path) -> None:
        self.notify, self.kept, self.part, self.began = notify, kept, "", 0.0
        self.seconds: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        self.earlier = sum(self.seconds.values())

    def start(self, part: str, text: str) -> None:
        self.stop()
        self.part, self.began = part, time.perf_counter()
        self.notify("part", {"text": text})

    def stop(self) -> dict[str, float]:
        if self.part:
            self.seconds[self.part] = self.seconds.get(self.part, 0.0) + time.perf_counter() - self.began
            self.part = ""
            write_json(self.kept, self.seconds)
        return self.seconds
