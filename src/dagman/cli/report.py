"""`dagman report`: a self-contained page on one run, or on several with their curves overlaid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman report runs/first")
def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more pretraining runs, finished or not.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Output file. Default: report.html in the run's folder.")] = None,
) -> None:
    """Write a self-contained HTML report of a run: its health, images, curves with their normal ranges, and settings.

    For several runs, the report overlays their curves and lists the settings in which they differ; --out is then required.
    The report is one file without external resources. Repeat the command to update it, also while the run is in progress.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.errors import SettingsError
    from dagman.training.run import Run

    found = [Run(run) for run in runs]
    console = Console()
    if len(found) > 1:
        from dagman.reports.run.overlay import write_runs_page

        if out is None:
            raise SettingsError("a report of several runs needs an output file", do="Give --out PAGE.html")
        with follow_parts(console, out.parent, log=f"{out.name}.run.log") as notify:
            notify(f"writing the report of {len(found)} runs")
            path = write_runs_page(found, out)
        console.print(str(path), markup=False, soft_wrap=True)
        return

    from dagman.reports.run.run_page import write_run_report
    from dagman.reports.run.verdicts import summarize_verdicts
    from dagman.training.monitoring.health import judge_run

    with follow_parts(console, found[0].path) as notify:
        notify("writing the report")
        path = write_run_report(found[0], out)
    console.print(summarize_verdicts(judge_run(found[0])).text.replace("**", ""), markup=False)
    console.print(str(path), markup=False, soft_wrap=True)
