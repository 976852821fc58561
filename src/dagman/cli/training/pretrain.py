"""`dagman pretrain`: a store, or scans, to an encoder."""

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
            help="A store, several with weights (a:2 b:1), or scans, which are prepared into RUN/store first; or patterns."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
    size: Annotated[str | None, typer.Option(help="tiny, small, paper; tiny-vit, ... for others. Default: tiny.")] = None,
    method: Annotated[str | None, typer.Option(help="Method: dagman, smit, ibot, ... Default: dagman.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings in a TOML file.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value, repeatable; see docs/settings.md.")] = None,
    modality: Annotated[
        str | None,
        typer.Option(metavar="ct|mr|all", help="Scans to train on, where there are CT and MR.", show_default=False),
    ] = None,
    many_passes: Annotated[
        bool, typer.Option("--many-passes", help="Begin even if each scan is seen more than 10,000 times.")
    ] = False,
    patients: PatientsOf = None,
    continue_from: Annotated[
        str | None,
        typer.Option(
            help="Take the first weights, and their sizes, from a run, an encoder or a file of MONAI, SMIT or VoCo.",
            metavar="SOURCE",
        ),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(metavar="wandb|mlflow", help="Also keep the curves for W&B (offline) or MLflow, in RUN.", show_default=False),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Take a few steps, print what the run will cost, and write nothing. Needs a store.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT, and refuse to begin one.")] = False,
    key: KeyPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Pretrain an encoder on a store, or on scans.

    --plan measures a few steps first: hours with an interval, memory, disk, energy where the device counts it, the micro-batch.
    Repeated, the command continues its run; settings that differ from the run's are refused by name.
    Ctrl-C lets the current step end first. SIGTERM and SIGUSR1, by which clusters announce the end of a job's time, do so as well
    and end with exit code 75: start me again. Under torchrun several processes share each step (docs/guides/devices.md).
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
    # Under torchrun, of all the processes of a run one speaks.
    first = os.environ.get("RANK", "0") == "0"
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    console = Console(stderr=as_json, quiet=not first)
    choices: dict[str, Any] = {"size": size, "method": method, "config": config, "assignments": [*(assignments or ()), *shorthands]}
    if plan:
        print_plan(console, source, as_json, continue_from=continue_from, **choices)
        return
    if out is None:
        raise SettingsError("a run needs a folder", do="Give --out RUN; or --plan, which writes none")
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
        console.print(f"Stopped at step {done} of {steps}; repeat the command to go on.")
        raise typer.Exit(REQUEUE if run.stopped == "requeue" else 130)
    if not as_json:
        text = f"{out}/encoder holds the encoder after {count_noun(done, 'step')}. Next: dagman report {out}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
