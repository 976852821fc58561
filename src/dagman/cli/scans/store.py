"""`dagman store`: check a store, list and count its scans, merge stores, remove patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagman.cli.tasks.task_options import KeyPath

if TYPE_CHECKING:
    from dagman.store.manifest import Store

app = typer.Typer(add_completion=False, no_args_is_help=True)


_LISTED = ("id", "patient", "patient_from", "modality", "shape", "spacing", "size")
StoreFolder = Annotated[Path, typer.Argument(help="A store, as written by dagman prepare.")]


@app.callback(epilog="Example: dagman store verify store")
def maintain_store() -> None:
    """Verify a store, list or summarise its scans, merge stores, or remove patients."""


@app.command("verify", epilog="Example: dagman store verify store")
def verify_folder(
    store: StoreFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check every file of a store against the manifest. The exit code is 1 if any is damaged or missing."""
    from rich.console import Console
    from rich.markup import escape

    from dagman.cli.progress import follow_parts
    from dagman.records.counts import count_noun
    from dagman.store.upkeep.verification import verify_store

    opened = _open_store(store)
    with follow_parts(Console(stderr=as_json), store) as notify:
        findings = verify_store(opened, notify)
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
            console.print(f"{count_noun(len(opened), 'scan')}, all intact.")
    if findings:
        raise typer.Exit(1)


@app.command("list", epilog="Example: dagman store list store --modality mr --csv scans.csv")
def list_folder(
    store: StoreFolder,
    patient: Annotated[list[str] | None, typer.Option(help="List only this patient's scans (pseudonym). Repeatable.")] = None,
    modality: Annotated[str | None, typer.Option(help="List only scans of this modality: ct, mr or other.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the list to this CSV file, in place of printing it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List the scans of a store: id, patient, modality and size. Reads only the manifest."""
    from dagman.records.counts import count_noun
    from dagman.records.csv_file import write_csv
    from dagman.store.upkeep.selection import select_rows
    from dagman.tables.patients import note_assumed

    rows = select_rows(_open_store(store), patients=patient or (), modality=modality)
    if as_json:
        typer.echo(json.dumps({"store": str(store), "scans": [{key: getattr(row, key) for key in _LISTED} for row in rows]}))
        return
    if csv is not None:
        write_csv(csv, _LISTED, [[_join(getattr(row, key)) for key in _LISTED] for row in rows])
    else:
        # Columns by hand: rich takes 2 ms a row.
        lines = [("id", "patient", "modality", "voxels", "MB")]
        lines += [(row.id, row.patient, row.modality, " x ".join(map(str, row.shape)), f"{row.size / 1e6:.1f}") for row in rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    patients = count_noun(len({row.patient for row in rows}), "patient")
    where = "" if csv is None else f" written to {csv}"
    typer.echo(f"{count_noun(len(rows), 'scan')} of {patients}, {sum(row.size for row in rows) / 1e6:.1f} MB{where}.")
    for note in note_assumed(sum(row.patient_from == "assumed" for row in rows), len(rows)):
        typer.echo(note)


@app.command("remove", epilog="Example: dagman store remove store P-1f2e3d4c5b6a7988")
def remove_from_folder(
    store: StoreFolder,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="PATIENT|ID...",
            help="Patients, given by pseudonym or (with the store's key) by PatientID or file name; or scan ids.",
        ),
    ],
    key: KeyPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Remove patients or scans from a store, for example when a patient withdraws consent. Only the number removed is recorded.

    Delete the source files as well, or the next dagman prepare adds them again. Runs, feature caches and results made from the
    store are not changed.
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
    typer.echo("Delete the source files as well, or the next dagman prepare adds them again.")
    typer.echo("Runs, feature caches and results made from the store are not changed.")


@app.command("merge", epilog="Example: dagman store merge store-a store-b --out store")
def merge_folders(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE STORE...", help="Stores with the same preparation and key.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged store; an interrupted merge is resumed.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge stores with the same preparation into a new one. Scans found in several stores are kept once, and listed.

    Files are hard-linked where the file system allows it, otherwise copied. The source stores and their lists of rejected files
    are not changed.
    """
    from dataclasses import asdict

    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.errors import StoreError
    from dagman.records.counts import count_noun, list_some
    from dagman.store.upkeep.merging import merge_stores

    if len(stores) < 2:
        raise StoreError("is one store; a merge needs two", where=stores[0], do="Name another one")
    with follow_parts(Console(stderr=as_json), out) as notify:
        merged = merge_stores(stores, out, notify)
    if as_json:
        typer.echo(json.dumps({"store": str(out), **asdict(merged)}))
        return
    patients = count_noun(merged.patients, "patient")
    typer.echo(f"{count_noun(merged.scans, 'scan')} of {patients} in {out} ({merged.already} were already there).")
    if merged.copies:
        kept = count_noun(len(merged.copies), "scan is", "scans are")
        typer.echo(f"{kept} held by several of the stores, and kept once: {list_some(merged.copies)}")
    for note in merged.notes:
        typer.echo(note)


@app.command("stats", epilog="Example: dagman store stats store --out store.html")
def describe_folder(
    store: StoreFolder,
    out: Annotated[Path | None, typer.Option(help="Output file (HTML).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Summarise a store: numbers of scans and patients, modalities, sizes, and body coverage.

    Reads only the manifest, which holds no names and no ages.
    """
    from dagman.records.files import write_text
    from dagman.reports.store_page import list_spreads, list_unrecorded, render_store, state_counts, state_kernels
    from dagman.store.upkeep.statistics import count_store

    counts = count_store(_open_store(store))
    if out is not None:
        write_text(out, render_store(counts))
    if as_json:
        typer.echo(json.dumps({"store": str(store), **counts}))
        return
    typer.echo(state_counts(counts))
    for name, *numbers in list_spreads(counts):
        typer.echo(f"{name}: {numbers[0]} to {numbers[-1]}, median {numbers[2]}")
    if kernels := state_kernels(counts):
        typer.echo(f"kernels: {kernels}")
    typer.echo(f"Not recorded: {', '.join([*list_unrecorded(counts), 'ages and names of patients, on purpose'])}.")
    if out is not None:
        typer.echo(f"Page: {out}")


def _join(value: object) -> object:
    """Numbers along the axes in one cell, as 120x96x80."""
    return "x".join(f"{one:g}" for one in value) if isinstance(value, tuple | list) else value


def _open_store(path: Path) -> Store:
    """A store of at least one scan: of an empty one nothing can be verified or listed."""
    from dagman.errors import StoreError
    from dagman.store.manifest import Store

    opened = Store(path)
    if not len(opened):
        raise StoreError("holds no scans", where=path, do=f"Prepare some: dagman prepare SCANS --out {path}")
    return opened
