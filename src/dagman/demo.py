"""The whole pipeline on the built-in cohort: scans, store, three pretrainings, probes, one page. About ten minutes on two cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagman import devices
from dagman.encoder.items import embed_items
from dagman.encoder.loading import load_encoder
from dagman.encoder.pooling import Pooling
from dagman.records.files import write_json
from dagman.records.provenance import write_command
from dagman.reports.demo_report import DemoTask, write_demo_report
from dagman.reports.run.run_page import write_run_report
from dagman.scans.phantom import write_cohort
from dagman.store.crops import CropSpec
from dagman.store.manifest import Store
from dagman.store.writer import prepare_store
from dagman.tables.table import Table, read_table
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.models import parse_model
from dagman.tasks.probing import ProbeScore, probe_models
from dagman.training.pretraining import pretrain
from dagman.training.run import Run

PATIENTS, SEEDS, STEPS = 24, (0, 1, 2), 80
ORGAN_PATIENTS = 6
"""Patients whose organs are probed: more would cost minutes and change little."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One downstream question of the demo: a table, and the crops its items are read from (mm)."""

    title: str
    table: str
    measure: str
    crop: CropSpec
    stages: tuple[int, ...] = (1, 2, 3, 4)
    patients: int | None = None


# Nodules are read from x1 alone: a cell of x2 is as wide as a small nodule, and x3 and x4 were at chance (docs/experiments.md).
PROBES = (
    Probe(title="Nodule malignancy", table="nodules.csv", measure="AUC", crop=CropSpec(64.0, 1.0), stages=(1,)),
    Probe(title="Organ", table="organs.csv", measure="balanced accuracy", crop=CropSpec(128.0, 2.0), patients=ORGAN_PATIENTS),
)
Notify = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made: the page, the runs, the probes' scores a task, and the seconds each part took."""

    report: Path
    runs: tuple[Run, ...]
    scores: dict[str, list[ProbeScore]]
    seconds: dict[str, float]


def run_demo(
    out: str | Path,
    *,
    patients: int = PATIENTS,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    assignments: Sequence[str] = (),
    notify: Notify | None = None,
) -> DemoResult:
    """Run the demo in the folder `out`; what is already there is kept and continued.

    Args:
        out: Folder for the cohort, the store, the runs and the page.
        patients: Size of the cohort.
        seeds: One pretraining each.
        steps: Steps of a pretraining.
        assignments: Further settings of the pretrainings, "key=value".
        notify: Called with "part" when a part begins, and with the events of `dagman.pretrain`.
    """
    out, notify = Path(out), notify or (lambda name, values: None)
    devices.tune_allocator()
    clock = _Clock(notify)

    clock.start("cohort", f"writing {patients} synthetic CTs")
    cohort = write_cohort(out / "cohort", patients=patients, seed=0)

    clock.start("prepare", "preparing the store")
    prepare_store(cohort.scans, out / "store")
    store = Store(out / "store")

    runs = []
    for number, seed in enumerate(seeds, start=1):
        clock.start("pretrain", f"pretraining, seed {seed} ({number} of {len(seeds)})")
        settings = [f"train.steps={steps}", f"seed={seed}", *assignments]
        run = pretrain(store.path, out / "runs" / f"seed-{seed}", size="tiny", assignments=settings, on_event=notify)
        if run.last_step < steps:
            # Ctrl-C let the step end; the demo ends with it and goes on from there when repeated.
            raise KeyboardInterrupt
        runs.append(run)

    scores, tasks = {}, []
    for probe in PROBES:
        clock.start("probe", f"probing: {probe.title.lower()}")
        table = read_table(cohort.folder / probe.table, label="label")
        scores[probe.title] = _probe(probe, table, runs, seeds)
        tasks.append(DemoTask(title=probe.title, measure=probe.measure, scores=scores[probe.title]))

    clock.start("report", "drawing the pages")
    for run in runs:
        write_run_report(run)
    seconds = clock.stop()
    report = write_demo_report(out, runs, tasks, seconds)
    rows = {title: [{"model": s.model, "probe": s.probe, "values": s.values} for s in found] for title, found in scores.items()}
    write_json(out / "probes.json", {"seeds": list(seeds), "scores": rows, "seconds": seconds})
    write_command(out, "demo", settings={"patients": patients, "seeds": list(seeds), "steps": steps, "set": list(assignments)})
    return DemoResult(report=report, runs=tuple(runs), scores=scores, seconds=seconds)


def _probe(probe: Probe, table: Table, runs: Sequence[Run], seeds: Sequence[int]) -> list[ProbeScore]:
    chosen = sorted({item.patient for item in table.items})[: probe.patients]
    kept = [i for i, item in enumerate(table.items) if item.patient in chosen]
    items = [table.items[i] for i in kept]

    def describe(model: str) -> NDArray[np.float32]:
        return extract_features(parse_model(model), items, crop=probe.crop).values

    def read(model: str) -> NDArray[np.float32]:
        pooling = Pooling(stages=probe.stages)
        encoder = load_encoder(model)
        return embed_items(encoder, items, pooling=pooling, crop=probe.crop).values

    named = (("raw pixels", "pixels"), ("intensity histogram", "histogram"), ("size alone", "radiomics:size"))
    fixed = {name: describe(spec) for name, spec in named}
    features: dict[str, list[NDArray]] = {
        "pretrained": [read(str(run.path)) for run in runs],
        "fresh": [read(f"scratch:tiny:{seed}") for seed in seeds],
        **{name: [values] * len(seeds) for name, values in fixed.items()},
    }
    return probe_models(features, [table.codes[i] for i in kept], [item.patient for item in items], seeds)


class _Clock:
    """Seconds a part; parts of one name add up."""

    def __init__(self, notify: Notify) -> None:
        self.notify, self.seconds, self.part, self.began = notify, {}, "", 0.0  # type: tuple[Notify, dict[str, float], str, float]

    def start(self, part: str, text: str) -> None:
        self.stop()
        self.part, self.began = part, time.perf_counter()
        self.notify("part", {"text": text})

    def stop(self) -> dict[str, float]:
        if self.part:
            self.seconds[self.part] = self.seconds.get(self.part, 0.0) + time.perf_counter() - self.began
            self.part = ""
        return self.seconds
