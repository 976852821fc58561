"""`dagman demo`: the whole pipeline on the built-in cohort."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman demo --out demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Output folder for the cohort, the store, the runs and the report.")] = Path("demo"),
    patients: Annotated[int, typer.Option(min=5, help="Number of synthetic patients; a quarter is held out.")] = 24,
    seeds: Annotated[int, typer.Option(min=1, help="Number of pretraining runs, each with its own seed.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 50,
    few_shot_steps: Annotated[int, typer.Option(min=1, help="Training steps of each few-shot segmentation.")] = 40,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the pretraining runs, as key=value. Repeatable.")
    ] = None,
) -> None:
    """Run the whole pipeline on synthetic CTs: prepare, pretrain, compare with random initialisation, and report.

    Takes at most ten minutes on two CPU cores. Repeat the command to resume it.
    """
    # Before numpy and torch are loaded: waiting threads must not spin on shared cores, and the solvers' problems are too small for
    # several threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from rich.console import Console
    from rich.table import Table

    from dagman.cli.progress import PlainLines, show_training
    from dagman.demo import run_demo
    from dagman.records.counts import count_noun
    from dagman.reports.demo_report import COLUMNS, conclude, describe_minutes, tabulate_comparisons

    console = Console()
    with PlainLines(console, out) as lines, show_training(console, lines) as notify:
        result = run_demo(
            out,
            patients=patients,
            seeds=range(seeds),
            steps=steps,
            few_shot_steps=few_shot_steps,
            assignments=assignments or (),
            notify=notify,
        )
    if result.comparisons:
        table = Table(*COLUMNS, title=f"Mean ± standard deviation over {count_noun(seeds, 'seed')}; the difference is paired")
        for row in tabulate_comparisons(result.comparisons):
            table.add_row(*row)
        console.print(table)
        console.print(conclude(result.comparisons)[1], highlight=False)
    parts = ", ".join(f"{part} {value:.0f} s" for part, value in result.seconds.items())
    console.print(f"{describe_minutes(result.seconds, result.earlier)}: {parts}.")
    console.print(f"Report: {result.report}", soft_wrap=True, highlight=False, markup=False)
