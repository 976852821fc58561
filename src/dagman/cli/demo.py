"""`dagman demo`: the whole road on the built-in cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman demo --out demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the cohort, the store, the runs and the page.")] = Path("demo"),
    patients: Annotated[int, typer.Option(min=5, help="Synthetic patients.")] = 24,
    seeds: Annotated[int, typer.Option(min=1, help="Pretrainings.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each.")] = 80,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value for the pretrainings, repeatable.")] = None,
) -> None:
    """The whole road on the built-in cohort: scans, store, pretraining, probes, one page.

    About ten minutes on two CPU cores. Repeated in the same folder, it continues.
    """
    from rich.console import Console
    from rich.table import Table

    from dagman.cli.progress import show_training
    from dagman.demo import PROBES, run_demo
    from dagman.records.counts import count_noun
    from dagman.reports.demo_report import DemoTask, explain_scores, tabulate_scores

    console = Console()
    with show_training(console) as tell:
        result = run_demo(out, patients=patients, seeds=range(seeds), steps=steps, assignments=assignments or (), tell=tell)
    for probe in PROBES:
        task = DemoTask(title=probe.title, measure=probe.measure, scores=result.scores[probe.title])
        columns, rows = tabulate_scores(task)
        table = Table(*columns, title=f"{probe.title} ({probe.measure}, mean ± sd over {count_noun(seeds, 'seed')})")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for _, text in explain_scores(task):
            console.print(f"· {text}", highlight=False)
    parts = ", ".join(f"{part} {value:.0f} s" for part, value in result.seconds.items())
    console.print(f"{sum(result.seconds.values()) / 60:.1f} minutes ({parts}).")
    console.print(f"Report: {result.report}", soft_wrap=True, highlight=False, markup=False)
