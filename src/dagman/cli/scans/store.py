"""`dagman store`: check a store, list its scans, remove patients from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagman.cli.tasks.task_options import KeyPath

if TYPE_CHECKING:
    from dagman.store.manifest import Store

app = typer.Typer(add_completion=False, no_args_is_help=True)


StoreFolder = Annotated[Path, typer.Argument(help="Folder that dagman prepare wrote.")]


@app.callback(epilog="Example: dagman store verify store")
def maintain_store() -> None:
    """Check that a store is whole, list its scans, or remove patients from it."""


@app.command("verify", epilog="Example: dagman store verify store")
def verify_folder(
    store: StoreFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Read every file of a store and compare it with the manifest; exit code 1 when something is wrong."""
    from rich.console import Console
    from rich.markup import escape

    from dagman.records.counts import count_noun
    from dagman.store.upkeep.verification import verify_store

    opened = _open_store(store)
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


@app.command("list", epilog="Example: dagman store list store")
def list_folder(
    store: StoreFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List the scans of a store: id, patient, modality, size. Only the manifest is read."""
    from dagman.records.counts import count_noun
    from dagman.tables.patients import note_assumed

    rows = _open_store(store).rows
    if as_json:
        keys = ("id", "patient", "patient_from", "modality", "shape", "spacing", "size")
        typer.echo(json.dumps({"store": str(store), "scans": [{key: getattr(row, key) for key in keys} for row in rows]}))
        return
    # Columns by hand: rich takes 2 ms a row.
    lines = [("id", "patient", "modality", "voxels", "MB")]
    lines += [(row.id, row.patient, row.modality, " x ".join(map(str, row.shape)), f"{row.size / 1e6:.1f}") for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    patients = count_noun(len({row.patient for row in rows}), "patient")
    typer.echo(f"{count_noun(len(rows), 'scan')} of {patients}, {sum(row.size for row in rows) / 1e6:.1f} MB.")
    for note in note_assumed(sum(row.patient_from == "assumed" for row in rows), len(rows)):
        typer.echo(note)


@app.command("remove", epilog="Example: dagman store remove store P-1f2e3d4c5b6a7988")
def remove_from_folder(
    store: StoreFolder,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="PATIENT|ID...",
            help="Patients, by pseudonym or, with the store's key, by PatientID or file name; or ids of scans.",
        ),
    ],
    key: KeyPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Remove patients or scans from a store, such as a patient who withdraws; only the number removed is recorded.

    Delete the patient's own files, too: the next dagman prepare would add them again. What was made from the store (runs,
    feature caches, results) is not changed.
    """
    from dataclasses import asdict

    from dagman.records.counts import count_noun
    from dagman.store.upkeep.removal import remove_scans

    removed = remove_scans(store, names, key=key)
    if as_json:
        typer.echo(json.dumps({"store": str(store), **asdict(removed)}))
        return
    scans, patients = count_noun(removed.scans, "scan"), count_noun(removed.patients, "patient")
    typer.echo(f"{scans} of {patients} removed; {count_noun(removed.left, 'scan is', 'scans are')} left.")
    typer.echo("Delete the source files, too: the next dagman prepare would add them again.")
    typer.echo("Runs, feature caches and results made from the store are not changed.")


def _open_store(path: Path) -> Store:
    """A store of at least one scan: of an empty one nothing can be verified or listed."""
    from dagman.errors import StoreError
    from dagman.store.manifest import Store

    opened = Store(path)
    if not len(opened):
        raise StoreError("holds no scans", where=path, do=f"Prepare some: dagman prepare SCANS --out {path}")
    return opened
