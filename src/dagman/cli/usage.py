"""Errors in a command line, each in one line with the nearest name, in place of Click's box."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import typer

from dagman.errors import SettingsError
from dagman.records.names import suggest_name

# Typer carries a Click of its own, or uses the one installed, by version; this is the class that both parse with.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# Pydantic's sentences, by the beginning of them; what follows "Input should be" in others reads on as it is.
_VALUES = (
    ("Input should be a valid number", "is not a number"),
    ("Input should be a valid integer", "is not a whole number"),
    ("Input should be a finite number", "is not a finite number"),
    ("Input should be greater than or equal to ", "must be at least "),
    ("Input should be less than or equal to ", "must be at most "),
    ("Input should be ", "must be "),
)


@contextmanager
def explain_usage() -> Iterator[None]:
    """Raise SettingsError where Click cannot parse a command line; the help of a command group without arguments stays as it is."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise _explain(error) from None


def _explain(error: Any) -> SettingsError:
    ctx = error.ctx
    command = _command_of(ctx)
    kind, help_line = type(error).__name__, f"See {f'dagman {command}'.strip()} --help"
    command = command or "dagman"
    if kind == "NoSuchOption":
        known = [] if ctx is None else [option for one in ctx.command.params for option in (*one.opts, *one.secondary_opts)]
        names = {option.strip("-"): option for option in ("--help", *known) if option.startswith("--")}
        nearest = get_close_matches(error.option_name.strip("-").lower(), names, n=1)
        do = f"Nearest: {names[nearest[0]]}" if nearest else help_line
        return SettingsError(f"{command} has no option {error.option_name}", do=do)
    if kind == "MissingParameter" and error.param is not None:
        return SettingsError(f"{command} needs {_show(error.param)}", do=help_line)
    if kind == "BadParameter" and error.param is not None:
        return SettingsError(_explain_value(error), where=_name(error.param))
    message = str(error.message)
    if unknown := re.match(r"No such command '(.*?)'", message):
        return SettingsError(f"{command} has no command '{unknown[1]}'", do=suggest_name(unknown[1], ctx.command.commands))
    if extra := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message):
        return SettingsError(
            f"{command} takes no further arguments, but got: {extra[1]}", do=f"Quote names that contain spaces; {help_line.lower()}"
        )
    if option := re.match(r"Option '(.*?)' requires (?:an argument|\d+ arguments)", message):
        return SettingsError(f"{option[1]} needs a value", do="Give it after the option")
    if option := re.match(r"Option '(.*?)' does not take a value", message):
        return SettingsError(f"{option[1]} takes no value", do=f"Give {option[1]} alone")
    return SettingsError(error.format_message(), do=help_line)


def _command_of(ctx: Any) -> str:
    """The names of the command and of those above it, without the program's, which depends on how it was called."""
    names: list[str] = []
    while ctx is not None and ctx.parent is not None:
        names.insert(0, str(ctx.info_name))
        ctx = ctx.parent
    return " ".join(names)


def _explain_value(error: Any) -> str:
    message = str(error.message).removeprefix("Value error, ")
    causes = getattr(error.__cause__, "errors", None)
    given = next((one.get("input") for one in causes()), None) if callable(causes) else None
    shown = "this" if given is None else f"'{given}'"
    for beginning, ours in _VALUES:
        if message.startswith(beginning):
            return f"{shown} {ours}{message.removeprefix(beginning) if ours.endswith(' ') else ''}"
    return message


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))


def _show(param: Any) -> str:
    return _name(param) if param.param_type_name == "argument" else f"{_name(param)} {(param.metavar or 'VALUE').strip('<>[]')}"
