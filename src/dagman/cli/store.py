"""`dagman store`: look after a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback(epilog="Example: dagman store verify store")
def store_command() -> None:
    """Check a store."""
    # A Typer app of one command takes no command's name; with a callback it does.


@app.command("verify", epilog="Example: dagman store verify store")
def verify_folder(
    store: Annotated[Path, typer.Argument(help="Folder that dagman prepare wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Read every file of a store and compare it with the manifest; exit code 1 when something is wrong."""
    from rich.console import Console
    from rich.markup import escape

    from dagman.records.counts import count_noun
    from dagman.store.manifest import Store
    from dagman.store.verification import verify_store

    opened = Store(store)
    findings = verify_store(opened)
    if as_json:
        listed = [{"file": one.file, "problem": one.problem} for one in findings]
        typer.echo(json.dumps({"store": str(store), "scans": len(opened), "findings": listed}))
    else:
        console = Console()
        for one in findings:
            console.print(f"[red]{escape(one.file)}[/red]: {escape(one.problem)}", highlight=False, soft_wrap=True)
        if findings:
            found = count_noun(len(findings), "finding")
            console.print(f"{found} in {count_noun(len(opened), 'scan')}. Delete these files and run dagman prepare again.")
        else:
            console.print(f"{count_noun(len(opened), 'scan')}, all whole.")
    if findings:
        raise typer.Exit(1)
