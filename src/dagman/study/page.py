"""A study's page and its CSV: the primary endpoint first, then a table a task, all differences, and the cost of each row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dagman.records.csv_file import write_frame
from dagman.records.files import write_text
from dagman.reports.page import Block, DataTable, Listing, Section, Text, Verdict, render_page
from dagman.study.execution import read_seconds
from dagman.study.plan import Job, Study
from dagman.study.tables import PairedDifference, Row

_ALPHA = 0.05


def write_study(study: Study, jobs: Sequence[Job], rows: Sequence[Row], differences: Sequence[PairedDifference], out: Path) -> Path:
    """Write `report.html`, `study.csv` (every number) and `differences.csv` into `out`; returns the page's path."""
    for name, values in (("study.csv", rows), ("differences.csv", differences)):
        write_frame(out / name, pd.DataFrame([vars(row) for row in values]))
    path = out / "report.html"
    write_text(path, render_study(study, jobs, rows, differences, out))
    return path


def render_study(study: Study, jobs: Sequence[Job], rows: Sequence[Row], differences: Sequence[PairedDifference], out: Path) -> str:
    """The page as HTML."""
    open_jobs = [job for job in jobs if not job.finished]
    lead = (
        f"{len(study.methods)} methods, {len(study.sizes)} sizes, seeds {', '.join(map(str, study.seeds))}; every task "
        f"on identical "
        "splits. Differences are paired by seed; with one seed they are the task's own, paired by patient."
    )
    sections = [Section("Primary endpoint", _judge_primary(study, differences))]
    for part in dict.fromkeys(row.part for row in rows):
        sections.append(Section(part, _tabulate_part(study, [row for row in rows if row.part == part])))
    sections += [
        Section("All differences", [_tabulate_differences(differences)] if differences else []),
        Section("Cost", _tabulate_cost(jobs, out)),
        Section("Not finished", [Listing([f"`{job.command}`" for job in open_jobs])] if open_jobs else []),
    ]
    return render_page(study.title, lead, sections, footer="Made by `dagman study`. This page loads nothing from elsewhere.")


def _judge_primary(study: Study, differences: Sequence[PairedDifference]) -> list[Block]:
    end = study.primary
    if end is None:
        return [Text("This study names no primary endpoint; every difference below is exploratory.")]
    what = f"{end.of}: `{end.first}` minus `{end.second}`"
    row = next((d for d in differences if d.primary), None)
    if row is None:
        return [Verdict("warn", f"{what} has not been measured yet.")]
    number = f"{row.value:+.4g} (95 % interval {row.low:+.4g} to {row.high:+.4g}, p = {row.p:.3g}, over {row.over})"
    if not math.isfinite(row.low):
        return [Verdict("warn", f"{what}: {row.value:+.4g}. One pair has no interval; run more seeds.")]
    half = (row.high - row.low) / 2
    seen = f"This study could have detected a difference of about {half:.3g}."
    if row.low <= 0 <= row.high:
        return [Verdict("warn", f"{what}: {number}. The interval holds 0: no difference was shown. {seen}")]
    return [Verdict("ok" if row.value > 0 else "bad", f"{what}: {number}. The interval excludes 0. {seen}")]


def _tabulate_part(study: Study, rows: Sequence[Row]) -> list[Block]:
    blocks: list[Block] = []
    for size in dict.fromkeys(row.size for row in rows):
        here = [row for row in rows if row.size == size]
        subsets = list(dict.fromkeys(row.subset for row in here))
        body = []
        for arm in dict.fromkeys(row.arm for row in here):
            cells = [[row.value for row in here if (row.arm, row.subset) == (arm, subset)] for subset in subsets]
            body.append([arm, *(_format_spread(values) for values in cells), max((len(values) for values in cells), default=0)])
        caption = f"Size `{size}`: mean and standard deviation over seeds."
        blocks.append(DataTable(["arm", *subsets, "seeds"], body, caption))
    return blocks


def _format_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"


def _tabulate_differences(differences: Sequence[PairedDifference]) -> DataTable:
    body = [
        [
            "primary" if d.primary else "secondary",
            d.part,
            d.size,
            d.subset,
            f"{d.first} − {d.second}",
            f"{d.value:+.4g} ({d.low:+.4g} to {d.high:+.4g})" if math.isfinite(d.low) else f"{d.value:+.4g}",
            d.p,
            d.corrected,
            d.over,
        ]
        for d in differences
    ]
    columns = ["endpoint", "of", "size", "labels", "difference", "difference (95 % interval)", "p", "p (Holm)", "over"]
    return DataTable(columns, body, "The primary endpoint is tested alone; all others are secondary and corrected together.")


def _tabulate_cost(jobs: Sequence[Job], out: Path) -> list[Block]:
    seconds = read_seconds(out)
    body = [[job.name, job.kind, seconds[job.name] / 3600] for job in jobs if job.name in seconds]
    return [DataTable(["job", "kind", "hours"], body, "Wall-clock hours on the machine that ran them.")] if body else []
