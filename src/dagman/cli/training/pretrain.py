"""`dagman pretrain`: pretrain an encoder on a store or on scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dagman.cli.tasks.task_options import KeyPath, PatientsOf

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Example: dagman pretrain store --out run --size tiny --set train.steps=300",
)
def pretrain_command(
    source: Annotated[
        list[Path],
        typer.Argument(
            help="A store; several stores, with sampling weights (a:2 b:1); or scans or glob patterns, which are first "
            "prepared into RUN/store."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Output folder (the run).")] = None,
    size: Annotated[
        str | None, typer.Option(help="Model size: tiny, small or paper; for other backbones tiny-vit, ... Default: tiny.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Pretraining method: dagman, smit, ibot, ... Default: dagman.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Setting to change, as key=value (see docs/settings.md). Repeatable.")
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(metavar="ct|mr|all", help="Which scans to train on, if there are both CT and MR.", show_default=False),
    ] = None,
    many_passes: Annotated[
        bool, typer.Option("--many-passes", help="Allow runs that see each scan more than 10,000 times.")
    ] = False,
    patients: PatientsOf = None,
    continue_from: Annotated[
        str | None,
        typer.Option(
            help="Initialise weights and model size from a run, an encoder, or a MONAI, SMIT or VoCo file.",
            metavar="SOURCE",
        ),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(metavar="wandb|mlflow", help="Also log the curves for W&B (offline) or MLflow, in RUN.", show_default=False),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Run a few steps, print an estimate of the run's cost, and write nothing. Needs a store.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in OUT; fail if there is none.")] = False,
    key: KeyPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pretrain an encoder on a store, or directly on scans.

    Use --plan to estimate time, memory, disk space and energy, and the best micro-batch. Repeat the command to resume a run;
    settings that differ from those of the run are rejected. Ctrl-C stops after the current step. So do SIGTERM and SIGUSR1, which
    schedulers send at the end of a job's time limit; the exit code is then 75, meaning that the job should be requeued. Under
    torchrun, several processes share each step (docs/guides/devices.md).
    """
    import json
    import os

    from rich.console import Console

    from dagman.cli.progress import PlainLines, print_verdicts, show_preparing, show_training
    from dagman.cli.training.planning import forecast_hours, print_plan
    from dagman.errors import SettingsError
    from dagman.records.counts import count_noun
    from dagman.training.monitoring.health import judge_run
    from dagman.training.monitoring.verdicts import sum_up
    from dagman.training.parallel.watch import REQUEUE
    from dagman.training.pretraining import pretrain
    from dagman.training.start.mixture import expand_parts

    source = expand_parts(source)
    shorthands = [f"view.modality={modality}"] if modality else []
    shorthands += ["train.many_passes=true"] if many_passes else []
    shorthands += [f"train.track={track}"] if track else []
    # Under torchrun, only the first process of a run prints.
    first = os.environ.get("RANK", "0") == "0"
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    console = Console(stderr=as_json, quiet=not first)
    choices: dict[str, Any] = {"size": size, "method": method, "config": config, "assignments": [*(assignments or ()), *shorthands]}
    if plan:
        print_plan(console, source, as_json, continue_from=continue_from, **choices)
        return
    if out is None:
        raise SettingsError("a run needs an output folder", do="Give --out RUN, or --plan, which writes nothing")
    with (
        PlainLines(console, out) as lines,
        show_preparing(console, lines) as on_preparation,
        show_training(console, lines) as on_training,
    ):

        def on_event(name: str, values: dict[str, Any]) -> None:
            if name == "begin" and alone and values["step"] == 0 and (forecast := forecast_hours(out)):
                console.print(f"[dim]·[/] {forecast}", highlight=False, soft_wrap=True)
            on_training(name, values)

        lines.state("reading the scans or the store")
        run = pretrain(
            source,
            out,
            **choices,
            patients=patients,
            continue_from=continue_from,
            resume=resume,
            on_event=on_event,
            on_preparation=on_preparation,
        )
    done, steps = run.last_step, run.settings.train.steps
    judged = judge_run(run)
    if as_json and first:
        light = {**sum_up(judged).to_json(), "verdicts": [verdict.to_json() for verdict in judged]}
        outcome: dict[str, Any] = {"run": str(out), "step": done, "steps": steps, "warnings": [w["text"] for w in run.warnings]}
        typer.echo(json.dumps(outcome | {"verdict": light}))
    print_verdicts(console, judged)
    if done < steps:
        console.print(f"Stopped at step {done} of {steps}; repeat the command to resume.")
        raise typer.Exit(REQUEUE if run.stopped == "requeue" else 130)
    if not as_json:
        text = f"{out}/encoder holds the encoder after {count_noun(done, 'step')}. Next: dagman report {out}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
