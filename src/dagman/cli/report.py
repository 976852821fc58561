"""`dagman report`: one self-contained page of a run, or of several over one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: dagman report runs/first")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of pretraining runs, finished or not.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="The page to write. Default: report.html in the run's folder.")] = None,
) -> None:
    """One self-contained HTML page of a run: verdict, pictures, curves with their normal ranges, settings.

    Of several runs: their curves over one another, and the settings in which they differ; --out names that page.
    The page loads nothing from elsewhere; open it in any browser, mail it, archive it. Repeat the command to update it, also
    during the run.
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
            raise SettingsError("the page of several runs needs a place", do="Give --out PAGE.html")
        with follow_parts(console) as notify:
            notify(f"drawing the page of {len(found)} runs")
            path = write_runs_page(found, out)
        console.print(str(path), markup=False, soft_wrap=True)
        return

    from dagman.reports.run.run_page import write_run_report
    from dagman.reports.run.verdicts import summarize_verdicts
    from dagman.training.monitoring.health import judge_run

    with follow_parts(console, found[0].path) as notify:
        notify("drawing the page")
        path = write_run_report(found[0], out)
    console.print(summarize_verdicts(judge_run(found[0])).text.replace("**", ""), markup=False)
    console.print(str(path), markup=False, soft_wrap=True)
