"""`dagman study`: methods x seeds x sizes x tasks from one file, on one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dagman.study.plan import Job, Study

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman study study.toml --out results --dry-run"


@app.command(epilog=_EXAMPLE)
def run_study(
    study: Annotated[str, typer.Argument(help="A TOML file, or a built-in study: claims or paper.")],
    out: Annotated[Path, typer.Option(help="Output folder for runs, results and the report.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder that paths in the study are relative to. Default: that of the file; for a built-in study, the current one."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands still to be run, and exit.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Estimate the cost of pretraining on this machine, and exit.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write Slurm batch scripts to OUT/slurm, and exit.")] = False,
    devices: Annotated[str, typer.Option(help="Devices, comma-separated; each runs one job at a time.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the jobs or the differences as JSON.")] = False,
) -> None:
    """Pretrain every method, size and seed of a study, run its tasks on identical splits, and write a report and CSV files.

    Repeat the command to resume: finished runs and tasks are kept. Comparisons are paired by seed. The primary endpoint is tested
    alone; all others are secondary, and corrected for multiple testing.
    """
    import json

    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.errors import SettingsError
    from dagman.study.execution import run_jobs
    from dagman.study.page import write_study
    from dagman.study.plan import list_jobs, list_runs, read_study
    from dagman.study.tables import collect_rows, compare_arms

    read = read_study(study)
    chosen = [device.strip() for device in devices.split(",") if device.strip()]
    if not chosen:
        raise SettingsError(
            f"--devices {devices!r} names no device", do="Give one or more, such as cuda:0,cuda:1, or omit the option"
        )
    place = base or (Path(study).parent if Path(study).suffix == ".toml" else Path())
    place, out = place.resolve(), out.resolve()
    jobs = list_jobs(read, place, out)
    if not jobs and not read.monitors:
        do = "Add a task or a monitor, or remove runs = {...} to pretrain"
        raise SettingsError(
            "the study has nothing to do: its runs exist already, and it has no task and no monitor", where=study, do=do
        )
    console = Console(stderr=as_json, soft_wrap=True, highlight=False, markup=False)
    if plan:
        _print_plan(read, console, chosen[0])
        return
    if slurm or dry_run:
        _print_jobs(jobs, out, slurm=slurm, as_json=as_json)
        return

    with follow_parts(console, out) as notify:
        report = _follow_jobs(jobs, console, notify)
        try:
            run_jobs(jobs, out, devices=chosen, on_job=report)
        finally:
            notify("collecting results")
            rows = collect_rows(read, jobs, list_runs(read, place, out))
            differences = compare_arms(read, jobs, rows)
            if rows:
                page = write_study(read, jobs, rows, differences, out)
                console.print(f"written: {page}")
    if as_json:
        typer.echo(json.dumps({"out": str(out), "differences": [vars(row) for row in differences]}))


def _follow_jobs(jobs: list[Job], console: Console, notify: Callable[[str], None]) -> Callable[[Job, str], None]:
    """A listener for `run_jobs`: a line for each start and end, and how many are done. Without time left: jobs differ too much."""
    ended: set[str] = set()
    running: dict[str, Job] = {}

    def report(job: Job, state: str) -> None:
        if state == "starts":
            running[job.name] = job
        else:
            ended.add(job.name)
            running.pop(job.name, None)
        console.print(f"{job.kind} {job.name}: {state}")
        names = ", ".join(f"{one.kind} {name}" for name, one in running.items()) or "none"
        notify(f"jobs: {len(ended)} done, {len(jobs) - len(ended) - len(running)} waiting; running: {names}")

    return report


def _print_jobs(jobs: list[Job], out: Path, *, slurm: bool, as_json: bool) -> None:
    """The commands that are not finished, or the scripts for Slurm that were written of them."""
    from dagman.study.execution import write_slurm
    from dagman.study.plan import describe_jobs

    left = [job for job in jobs if not job.finished]
    if not left:
        typer.echo(
            f"Every job of the study is finished; repeat the command without --slurm or --dry-run to write the report in {out}.",
            err=True,
        )
    if slurm:
        for path in write_slurm(left, out) if left else ():
            typer.echo(path)
    elif as_json:
        typer.echo(describe_jobs(jobs))
    else:
        for job in left:
            typer.echo(job.command)


def _print_plan(study: Study, console: Console, device: str) -> None:
    from rich.table import Table

    from dagman.devices import choose_device
    from dagman.records.counts import count_noun
    from dagman.study.cost import estimate_study, total_hours

    chosen = choose_device(device).value
    costs = estimate_study(study, chosen)
    table = Table("size", "method", "runs", "steps", "views", "PFLOP a run", f"hours on {chosen}")
    for cost in costs:
        cells = (cost.runs, cost.steps, cost.views, f"{cost.operations / 1e15:.3g}", f"{cost.hours:.3g}")
        table.add_row(cost.size, cost.method, *map(str, cells))
    console.print(table)
    commands = len(study.tasks) * len(study.sizes) * len(study.seeds)
    console.print(
        f"Pretraining: about {total_hours(costs):.3g} hours one after the other, from the operations of each size at the pace of "
        f"`tiny` measured just now on {chosen}. Not estimated: {count_noun(commands, 'command')} of the tasks."
    )
