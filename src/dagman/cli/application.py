"""The command line: one file per command, imported only when the command is used, so that `dagman --help` stays fast."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from dagman.cli.metavars import name_value, name_values
from dagman.cli.usage import explain_usage
from dagman.errors import DagmanError, SettingsError, explain_system_error
from dagman.records.names import suggest_name
from dagman.records.stopping import catch_stops
from dagman.tasks.registry import TASKS, load_part

_BEFORE_TASKS = {
    "demo": "Run the whole pipeline on synthetic CTs: prepare, pretrain, evaluate, report.",
    "inspect": "Check which series are usable, and give the reason for those that are not.",
    "prepare": "Prepare scans for training: resampled, cropped, and kept in a store.",
    "pretrain": "Pretrain an encoder on a store, or directly on scans.",
    "replay": "Recompute a single training step whose loss was not finite, to find the cause.",
    "runs": "List the pretraining runs in a folder, with their health.",
    "bench": "Measure the pretraining speed of this machine.",
    "report": "Write a self-contained HTML report of one run, or of several.",
    "embed": "Extract feature vectors of scans, or of the items of a table.",
    "attention": "Write attention maps of a scan, as NIfTI and as images.",
    "view": "Write an HTML viewer of a scan, with attention, labels or marks overlaid.",
    "info": "Describe an encoder, run, store or model: its origin, inputs and outputs.",
    "export": "Export an encoder to another program: monai, nnunet, hf, onnx, torch-export.",
}
_AFTER_TASKS = {
    "predict": "Apply a trained model to scans.",
    "compare": "Compare several models on one task, with identical splits.",
    "study": "Run a whole study from one file: methods, seeds and tasks.",
    "import": "Convert a public data set to a table: lidc, medmnist.",
    "store": "Verify a store, list its scans, merge stores, or remove patients.",
}
# `import` is a Python keyword, so its file has another name. Related commands share a folder.
_MODULES = {
    "bench": "training.bench",
    "import": "imports",
    "inspect": "scans.inspect",
    "prepare": "scans.prepare",
    "pretrain": "training.pretrain",
    "replay": "training.replay",
    "runs": "training.runs",
    "store": "scans.store",
    "view": "scans.view",
    "predict": "tasks.predict",
    "compare": "tasks.compare",
    "embed": "encoders.embed",
    "attention": "encoders.attention",
    "info": "encoders.info",
    "export": "encoders.export",
}


def list_commands() -> dict[str, str]:
    """Every command with its line in `dagman --help`, including the registered tasks."""
    return _BEFORE_TASKS | {task.name: task.help for task in TASKS.values()} | _AFTER_TASKS


def load_command(name: str) -> Any:
    """The click command with this name; only its own file is imported."""
    module = f"dagman.cli.{_MODULES.get(name, name)}"
    command = typer.main.get_command(load_part(TASKS[name].command if name in TASKS else f"{module}:app"))
    command.name = name
    return name_values(command)


class _LazyGroup(TyperGroup):
    """Lists all commands from the tables above, and imports only the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(list_commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        text = list_commands().get(cmd_name)
        return None if text is None else TyperCommand(cmd_name, help=text)

    def get_params(self, ctx: Any) -> Any:
        return [name_value(param) for param in super().get_params(ctx)]

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with explain_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with explain_usage():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            # Caught here, because typer would exit without a message.
            typer.echo("dagman: stopped; repeat the command to resume.", err=True)
            raise typer.Exit(130) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, known = args[0], list_commands()
        if name in known:
            return name, load_command(name), args[1:]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        raise SettingsError(f"there is no command '{name}'", do=suggest_name(name, known))


app = typer.Typer(
    cls=_LazyGroup,
    name="dagman",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from dagman import __version__

        typer.echo(f"dagman {__version__}")
        raise typer.Exit


@app.callback()
def start_command(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
) -> None:
    """Pretrain 3D encoders on CT without labels, and evaluate them on your own tasks.

    Commands read files or folders and write a folder. Repeat an interrupted command to resume it.
    """


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Ignore errors of the system in a thread, such as a full disk: the main thread meets and reports them, too."""
    if failure.exc_value is None or explain_system_error(failure.exc_value) is None:
        threading.__excepthook__(failure)


def main() -> None:
    """Run the command line; a user error is one line on stderr and exit code 2."""
    threading.excepthook = _report_thread
    # Before torch is loaded: threads that spin while they wait made a step six times as long on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with catch_stops():
            app()
    except DagmanError as error:
        typer.echo(f"dagman: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. This is not an error, but Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (reason := explain_system_error(error)) is None:
            raise
        typer.echo(f"dagman: {reason}", err=True)
        sys.exit(2)
