"""`dagman report`: one self-contained page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman report runs/first")
def report(run: Annotated[Path, typer.Argument(help="Folder of a pretraining run, finished or not.", metavar="RUN")]) -> None:
    """One self-contained HTML page of a run: verdict, pictures, curves with their normal ranges, settings.

    The page is written into the run's folder and loads nothing from elsewhere; open it in any browser, mail it, archive it.
    Repeat the command to update it, also during the run.
    """
    from rich.console import Console

    from dagman.reports.run.run_page import write_run_report
    from dagman.reports.run.verdicts import summarize_verdicts
    from dagman.training.monitoring.health import judge_run
    from dagman.training.run import Run

    found = Run(run)
    path = write_run_report(found)
    console = Console()
    console.print(summarize_verdicts(judge_run(found)).text.replace("**", ""), markup=False)
    console.print(str(path), markup=False, soft_wrap=True)
