"""Results of a study: one row per arm, seed and subset, and differences paired by seed, with the primary endpoint first.

With a single seed, the paired difference over patients that the task computed is used instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from dagman.evaluation.results import Results
from dagman.evaluation.statistics import correct_holm, find_detectable
from dagman.study.plan import Job, Study, TaskPlan
from dagman.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Row:
    """The value of a part of the study (a task or a monitor) for one arm, size, seed and subset of labels."""

    part: str
    arm: str
    size: str
    seed: int
    subset: str
    value: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """First minus second arm, with a 95 % interval over seeds or patients (`over`); `corrected` is p corrected by Holm."""

    part: str
    size: str
    subset: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    corrected: float
    over: str
    detectable: float
    "See `find_detectable`."
    primary: bool = False


def collect_rows(study: Study, jobs: Sequence[Job], runs: dict[tuple[str, str, int], Path]) -> list[Row]:
    """Collect the study's measures and monitors from the finished jobs."""
    rows = []
    for task in study.tasks:
        for job in (j for j in jobs if j.kind == "task" and j.arm == task.name and j.finished):
            rows += _read_task(task, job)
    for monitor in study.monitors:
        for (size, method, seed), folder in runs.items():
            value = _read_monitor(folder, monitor.path)
            if value is not None:
                rows.append(Row(part=monitor.name, arm=method, size=size, seed=seed, subset="100%", value=value))
    return rows


def pair_by_seed(values: dict[int, float], others: dict[int, float]) -> tuple[float, float, float, float]:
    """Compute the mean difference over common seeds, its 95 % t interval, and p of the paired t-test (NaN with one seed)."""
    differences = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    if not differences:
        return math.nan, math.nan, math.nan, math.nan
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, math.nan, math.nan, math.nan
    half = float(student_t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    p = float(ttest_1samp(differences, 0.0).pvalue) if len(set(differences)) > 1 else math.nan
    return mean, mean - half, mean + half, p


def compare_arms(study: Study, jobs: Sequence[Job], rows: Sequence[Row]) -> list[PairedDifference]:
    """Compare every arm with the first one of each part, the primary endpoint first; all others are corrected (Holm)."""
    found = []
    for part in dict.fromkeys(row.part for row in rows):
        for size in study.sizes:
            here = [row for row in rows if (row.part, row.size) == (part, size)]
            arms = list(dict.fromkeys(row.arm for row in here))
            primary = study.primary if study.primary is not None and study.primary.of == part else None
            first = primary.first if primary is not None else arms[0] if arms else ""
            for subset in dict.fromkeys(row.subset for row in here):
                for second in (arm for arm in arms if arm != first):
                    found.append(_compare(study, jobs, here, part, size, subset, first, second))
    chosen = study.primary
    marked = [
        PairedDifference(**{**vars(row), "primary": chosen is not None and _is_primary(row, study)})
        for row in found
        if row is not None
    ]
    secondary = [row for row in marked if not row.primary]
    corrected = iter(correct_holm([row.p for row in secondary]) if secondary else [])
    return [row for row in marked if row.primary] + [
        PairedDifference(**{**vars(row), "corrected": next(corrected)}) for row in secondary
    ]


def _is_primary(row: PairedDifference, study: Study) -> bool:
    end = study.primary
    monitors = {monitor.name for monitor in study.monitors}
    if end is None or row.size != study.sizes[0]:
        return False
    subset = "100%" if end.of in monitors else end.subset
    return (row.part, row.first, row.second, row.subset) == (end.of, end.first, end.second, subset)


def _compare(
    study: Study, jobs: Sequence[Job], rows: Sequence[Row], part: str, size: str, subset: str, first: str, second: str
) -> PairedDifference | None:
    values = {arm: {row.seed: row.value for row in rows if row.arm == arm and row.subset == subset} for arm in (first, second)}
    seeds = values[first].keys() & values[second].keys()
    if not seeds:
        return None
    task = next((t for t in study.tasks if t.name == part), None)
    common: dict[str, Any] = {"part": part, "size": size, "subset": subset, "first": first, "second": second}
    if len(seeds) == 1 and task is not None:
        job = next(j for j in jobs if j.arm == part and j.size == size and j.seed == next(iter(seeds)) and j.kind == "task")
        if (own := _read_difference(task, job, subset, first, second)) is not None:
            return PairedDifference(**common, **own)
    value, low, high, p = pair_by_seed(values[first], values[second])
    least = find_detectable((high - low) / 2, freedom=len(seeds) - 1) if len(seeds) > 1 else math.nan
    over = f"{len(seeds)} seeds"
    return PairedDifference(**common, value=value, low=low, high=high, p=p, corrected=p, over=over, detectable=least)


def _read_task(task: TaskPlan, job: Job) -> list[Row]:
    measurements = Results(job.folder).summary.measurements
    method = task.method or next((m.method for m in measurements), "")
    arms = {name: arm for arm, name in job.models}
    return [
        Row(part=task.name, arm=arms[m.model], size=job.size, seed=job.seed, subset=m.subset, value=m.interval.value)
        for m in measurements
        if m.name == task.measure and m.method == method and m.model in arms and math.isfinite(m.interval.value)
    ]


def _read_difference(task: TaskPlan, job: Job, subset: str, first: str, second: str) -> dict[str, Any] | None:
    names = dict(job.models)
    for row in Results(job.folder).summary.comparisons:
        if row.name != task.measure or row.subset != subset or (task.method and row.method != task.method):
            continue
        d = row.difference
        same = {"p": d.p, "corrected": d.p, "over": f"{d.patients} patients", "detectable": d.detectable}
        if (row.first, row.second) == (names[first], names[second]):
            return {"value": d.value, "low": d.low, "high": d.high, **same}
        if (row.first, row.second) == (names[second], names[first]):
            return {"value": -d.value, "low": -d.high, "high": -d.low, **same}
    return None


def _read_monitor(folder: Path, path: str) -> float | None:
    if not (folder / "settings.toml").is_file() or not (rows := Run(folder).monitors):
        return None
    value: Any = rows[-1]
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
