"""Write a study's report and CSVs: the primary endpoint, a table per task, all differences, and the time of each job."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dagman.evaluation.measures import find_measure
from dagman.records.counts import count_noun
from dagman.records.csv_file import write_frame
from dagman.records.files import write_text
from dagman.reports.names import format_interval, format_p, name_measure, name_method
from dagman.reports.page import Block, DataTable, Level, Links, Listing, Section, Text, Verdict, render_page
from dagman.study.execution import read_seconds
from dagman.study.plan import Job, Study
from dagman.study.tables import PairedDifference, Row

_ALPHA = 0.05


def write_study(study: Study, jobs: Sequence[Job], rows: Sequence[Row], differences: Sequence[PairedDifference], out: Path) -> Path:
    """Write `report.html`, `study.csv` (every value) and `differences.csv` to `out`; returns the path of the report."""
    for name, values in (("study.csv", rows), ("differences.csv", differences)):
        write_frame(out / name, pd.DataFrame([vars(row) for row in values]))
    path = out / "report.html"
    write_text(path, render_study(study, jobs, rows, differences, out))
    return path


def render_study(study: Study, jobs: Sequence[Job], rows: Sequence[Row], differences: Sequence[PairedDifference], out: Path) -> str:
    """Render the report as HTML."""
    open_jobs = [job for job in jobs if not job.finished]
    lead = (
        f"{count_noun(len(study.methods), 'method')}, {count_noun(len(study.sizes), 'size')}, "
        f"{count_noun(len(study.seeds), 'seed')} ({', '.join(map(str, study.seeds))}); all tasks use identical splits. "
        + ("Differences are paired by seed." if len(study.seeds) > 1 else "With one seed, differences are paired by patient.")
    )
    sections = [Section("Primary endpoint", _judge_primary(study, differences))]
    for part in dict.fromkeys(row.part for row in rows):
        sections.append(Section(part, _tabulate_part(study, [row for row in rows if row.part == part])))
    sections += [
        Section("All differences", [_tabulate_differences(study, differences)] if differences else []),
        Section("Individual reports", _link_pages(jobs, out)),
        Section("Cost", _tabulate_cost(jobs, out)),
        Section("Not finished", [Listing([f"`{job.command}`" for job in open_jobs])] if open_jobs else []),
    ]
    return render_page(study.title, lead, sections, footer="Made by `dagman study`. This page needs no network connection.")


def _judge_primary(study: Study, differences: Sequence[PairedDifference]) -> list[Block]:
    end = study.primary
    if end is None:
        return [Text("This study has no primary endpoint; every difference below is exploratory.")]
    what = f"{end.of}: `{end.first}` minus `{end.second}`"
    row = next((d for d in differences if d.primary), None)
    if row is None:
        return [Verdict("warn", f"{what} has not been measured yet.")]
    difference = format_interval(row.value, row.low, row.high, sign=True)
    number = f"{difference}, p {format_p(row.p)}, 95 % interval over {row.over}"
    if not math.isfinite(row.low):
        return [Verdict("warn", f"{what}: {difference}. A single pair has no confidence interval; run more seeds.")]
    seen = f"This study has 80 % power to detect a true difference of {row.detectable:.3g}."
    if row.low <= 0 <= row.high:
        return [Verdict("warn", f"{what}: {number}. The confidence interval includes 0: no difference was shown. {seen}")]
    return [Verdict(_judge_sign(study, row), f"{what}: {number}. The confidence interval excludes 0. {seen}")]


def _judge_sign(study: Study, row: PairedDifference) -> Level:
    """Choose the status by whether the first arm is better; monitors have no better direction."""
    measures = [task.measure for task in study.tasks if task.name == row.part]
    rising = find_measure(measures[0]).higher_is_better if measures else None
    return "warn" if rising is None else "ok" if (row.value > 0) == rising else "bad"


def _tabulate_part(study: Study, rows: Sequence[Row]) -> list[Block]:
    task = next((task for task in study.tasks if task.name == rows[0].part), None)
    path = next((monitor.path for monitor in study.monitors if monitor.name == rows[0].part), "")
    what = f"{name_measure(task.measure)} ({name_method(task.method)})" if task and task.method else ""
    what = what or (name_measure(task.measure) if task else f"The monitor `{path}` at the end of each pretraining run")
    blocks: list[Block] = []
    for size in dict.fromkeys(row.size for row in rows):
        here = [row for row in rows if row.size == size]
        subsets = list(dict.fromkeys(row.subset for row in here))
        body = []
        for arm in dict.fromkeys(row.arm for row in here):
            cells = [[row.value for row in here if (row.arm, row.subset) == (arm, subset)] for subset in subsets]
            body.append([arm, *(_format_spread(values) for values in cells), max((len(values) for values in cells), default=0)])
        caption = f"{what}, size `{size}`: mean ± standard deviation over seeds."
        columns = [f"{subset} of the labels" for subset in subsets] if task else ["value"]
        blocks.append(DataTable(["arm", *columns, "seeds"], body, caption))
    return blocks


def _format_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def _tabulate_differences(study: Study, differences: Sequence[PairedDifference]) -> DataTable:
    several = len(study.sizes) > 1
    body = [
        [
            f"{d.part} (primary)" if d.primary else d.part,
            *([d.size] if several else []),
            d.subset if any(task.name == d.part for task in study.tasks) else "–",
            f"{d.first}\u00a0− {d.second}",
            format_interval(d.value, d.low, d.high, sign=True),
            format_p(d.p),
            "–" if d.primary else format_p(d.corrected),
            d.over.replace(" ", "\u00a0"),
        ]
        for d in differences
    ]
    columns = ["endpoint", *(["size"] if several else []), "labels", "arms", "difference (95 % CI)", "p", "p (Holm)", "over"]
    return DataTable(columns, body, "The primary endpoint is tested alone; all others are secondary and corrected together.")


def _tabulate_cost(jobs: Sequence[Job], out: Path) -> list[Block]:
    seconds = read_seconds(out)
    spent = {job: seconds[job.name] for job in jobs if job.name in seconds}
    unit, length = ("hours", 3600) if sum(spent.values()) > 3 * 3600 else ("minutes", 60)
    body = [[job.name, job.kind, f"{value / length:.1f}"] for job, value in spent.items()]
    caption = f"Wall-clock {unit} on the machine that ran them."
    return [DataTable(["job", "kind", unit], body, caption)] if body else []


def _link_pages(jobs: Sequence[Job], out: Path) -> list[Block]:
    """Link to the reports inside the study's folder: one per pretraining, and one per task and seed."""
    pages = {
        kind: [(job.name, (job.folder / "report.html").relative_to(out).as_posix()) for job in jobs if _has_page(job, kind, out)]
        for kind in ("pretrain", "task")
    }
    words = {"pretrain": "Pretrainings:", "task": "Tasks:"}
    return [Links(words[kind], found) for kind, found in pages.items() if found]


def _has_page(job: Job, kind: str, out: Path) -> bool:
    return job.kind == kind and job.folder.is_relative_to(out) and (job.folder / "report.html").is_file()
