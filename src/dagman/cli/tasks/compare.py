"""`dagman compare`: a task's own command, for two models or more."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from dagman.cli.application import load_command
from dagman.errors import TaskError
from dagman.records.names import suggest_name
from dagman.tasks.registry import TASKS

_EXAMPLE = (
    "Example: dagman compare classify runs/first scratch:small radiomics:size nodules.csv --label label --shares 25,50,100 "
    "--repeats 10 --out compared"
)


class _Tasks(TyperGroup):
    """The commands of all tasks; refuses a task that there is not, naming the nearest."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(TASKS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load_command(cmd_name) if cmd_name in TASKS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in TASKS and not args[0].startswith("-"):
            raise TaskError(f"there is no task '{args[0]}'", do=suggest_name(args[0], TASKS))
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Tasks, add_completion=False, no_args_is_help=True, epilog=_EXAMPLE)


@app.callback()
def compare_models() -> None:
    """Compare several models on one task, with identical items, crops, splits and few-shot draws.

    The same as the task's own command, `dagman classify MODEL... TABLE`, but requires at least two models. Reports each model
    with 95 % confidence intervals over patients, and paired differences on the same items: by DeLong's test for AUC and by the
    paired bootstrap otherwise, with Holm's correction. OUT/report.html plots performance against the number of labels.
    """
