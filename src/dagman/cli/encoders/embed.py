"""`dagman embed`: feature vectors of scans, of a store's scans, or of a table's items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagman.cli.tasks.task_options import Coordinates, CropMm, CropSpacing, Ids, KeyPath, PatientsOf, Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dagman.encoder.items import FeatureRow, RefusedItem
    from dagman.scans.discovery import Refusal
    from dagman.store.manifest import Store
    from dagman.tables.items import Item

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman embed runs/first nodules.csv --out nodules.parquet --crop-spacing 0.7"


@app.command(epilog=_EXAMPLE)
def embed_sources(
    encoder: Annotated[str, typer.Argument(help="A run, an encoder folder, or scratch:SIZE.")],
    sources: Annotated[list[Path], typer.Argument(help="Scans (files, folders, patterns, @LIST of paths), a table, or a store.")],
    out: Annotated[Path, typer.Option(help="Parquet or CSV file to write.")],
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    stages: Annotated[str, typer.Option(help="Stages to pool, comma-separated.")] = "1,2,3,4",
    pools: Annotated[str, typer.Option(help="Statistics to pool from each stage, comma-separated.")] = "mean,std,max",
    store: Annotated[Path | None, typer.Option(help="Store that holds the scans which a table names by id.")] = None,
    patient: Annotated[str, typer.Option(help="The table's column of patients.")] = "patient",
    ids: Ids = "checked",
    mask_label: Annotated[int | None, typer.Option(help="The structure's value in every mask of the table.")] = None,
    coordinates: Coordinates = "ras",
    cache: Annotated[Path | None, typer.Option(help="Folder of cached feature vectors.")] = None,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto.")] = "fp32",
    patients: PatientsOf = None,
    key: KeyPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Write one feature vector per item as Parquet or CSV: of whole scans, or pooled inside masks or around points.

    Items that cannot be used are listed with their reason in OUT.rejected.csv; how OUT came to be is in OUT.command.json.
    """
    from dagman.encoder.embedding import list_columns
    from dagman.encoder.feature_file import describe_pooling, write_features, write_refused
    from dagman.encoder.items import stream_features
    from dagman.encoder.loading import load_encoder
    from dagman.errors import SettingsError, TaskError
    from dagman.records.provenance import hide_path, write_command
    from dagman.records.sources import expand_sources
    from dagman.store.crops import CropSpec
    from dagman.tables.items import note_cut

    if out.suffix.lower() not in (".parquet", ".pq", ".csv"):
        raise SettingsError("features are written as Parquet or CSV", where=out, do="Name it something.parquet or something.csv")
    sources = expand_sources(sources)
    pooling = _read_pooling(stages, pools)
    loaded = load_encoder(encoder, device=device, precision=precision, weights=weights)
    items, opened, refused, notes = _list_items(sources, store, patient, mask_label, coordinates, ids, patients)
    crop = CropSpec(crop_mm, crop_spacing)
    rows = stream_features(loaded, items, store=opened, pooling=pooling, crop=crop, cache=cache)
    columns = list_columns(loaded, pooling)
    settings = {**describe_pooling(pooling, crop), "sources": [hide_path(str(source)) for source in sources]}
    rejected = out.with_name(f"{out.name}.rejected.csv")
    if not items:
        write_refused(rejected, [(one.source, one.reason) for one in refused])
        first = f": {refused[0].source}: {refused[0].reason}" if refused else ""
        raise TaskError(f"there are no items to embed{first}", where=", ".join(map(str, sources)))
    left_out: list[RefusedItem] = []
    cut: dict[str, float] = {}
    try:
        shown = _show_progress(_collect_cut(rows, cut), len(items), out, quiet=as_json)
        count = write_features(out, shown, loaded, columns, settings, left_out)
    finally:
        reasons = [*((one.source, one.reason) for one in refused), *((one.item.name, one.reason) for one in left_out)]
        write_refused(rejected, reasons)
    outcome = {"written": count, "refused": len(reasons), "columns": len(columns), "out": str(out), "rejected": str(rejected)}
    inputs = {"encoder": loaded.source, "encoder_digest": loaded.digest}
    write_command(out.parent, "embed", name=f"{out.name}.command.json", settings=settings, inputs=inputs, outcome=outcome)
    _report(outcome, reasons, [loaded.describe(), *notes, *note_cut(cut)], as_json=as_json)


def _read_pooling(stages: str, pools: str) -> Any:
    from dagman.encoder.pooling import Pooling
    from dagman.errors import SettingsError

    texts = [text.strip() for text in stages.split(",") if text.strip()]
    if not all(text.isdigit() for text in texts):
        raise SettingsError(f"--stages {stages!r} is not a list of stages", do="Write --stages 1,2,3,4")
    return Pooling(
        stages=tuple(int(text) for text in texts), pools=tuple(text.strip() for text in pools.split(",") if text.strip())
    )


def _list_items(
    sources: list[Path], store: Path | None, patient: str, mask_label: int | None, coordinates: Any, ids: str, patients: str | None
) -> tuple[list[Item], Store | None, list[Refusal], list[str]]:
    """Items of one table, of one store, or of scans; the store, what was refused already, and what is to be said."""
    from dataclasses import replace

    from dagman.encoder.items import list_scans, list_stored
    from dagman.errors import SettingsError
    from dagman.records.sources import describe_names, name_relative
    from dagman.store.manifest import Store
    from dagman.tables.patients import note_patients
    from dagman.tables.table import read_table
    from dagman.tables.table_file import is_table

    special = [source for source in sources if is_table(source) or (source / "store.json").exists()]
    if special and len(sources) > 1:
        raise SettingsError("is a table or a store, and other sources were given beside it", where=special[0], do="Give it alone")
    if special and patients:
        do = "Leave it out: a table has a column of patients (--patient), and a store knows its own"
        raise SettingsError("--patients is for scans that are given as files", where=special[0], do=do)
    if not special:
        items, refused = list_scans(sources, patients=patients)
        names = name_relative([item.name for item in items], sources)
        items = [replace(item, name=name) for item, name in zip(items, names, strict=True)]
        return items, None, refused, [*note_patients(items), describe_names()] if items else []
    if (special[0] / "store.json").exists():
        opened = Store(special[0])
        items = list_stored(opened)
        return items, opened, [], note_patients(items)
    held = Store(store) if store else None
    stored = [row.id for row in held.rows] if held else []
    table = read_table(special[0], patient=patient, mask_label=mask_label, coordinates=coordinates, known_ids=stored, ids=ids)
    return list(table.items), held, [], [note.text for note in table.notes]


def _collect_cut(rows: Iterator[FeatureRow | RefusedItem], cut: dict[str, float]) -> Iterator[FeatureRow | RefusedItem]:
    """The rows as they come; the shares of their masks that lie outside their scans go into `cut`."""
    from dagman.encoder.items import FeatureRow

    for row in rows:
        if isinstance(row, FeatureRow) and row.cut:
            cut[row.item.name] = row.cut
        yield row


def _show_progress(
    rows: Iterator[FeatureRow | RefusedItem], total: int, out: Path, *, quiet: bool
) -> Iterable[FeatureRow | RefusedItem]:
    from rich.console import Console
    from rich.progress import track

    from dagman.cli.progress import PlainLines

    console = Console(stderr=True)
    if quiet:
        return rows
    if not console.is_terminal:
        return PlainLines(console, out.parent, log=f"{out.name}.run.log").follow(rows, "embedding: item", total)
    return track(rows, description="embedding", total=total, console=console, transient=True)


def _report(outcome: dict[str, Any], reasons: list[tuple[str, str]], notes: list[str], *, as_json: bool) -> None:
    from rich.console import Console

    from dagman.records.counts import count_noun

    if as_json:
        refused = [{"source": source, "reason": reason} for source, reason in reasons]
        typer.echo(json.dumps({**outcome, "notes": notes, "refusals": refused}))
        return
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for note in notes:
        console.print(note)
    console.print(
        f"{count_noun(outcome['written'], 'item')} embedded, {outcome['columns']} features each; {outcome['refused']} refused"
    )
    for source, reason in reasons[:20]:
        console.print(f"  refused {source}: {reason}")
    if len(reasons) > 20:
        console.print(f"  and {len(reasons) - 20} more: {outcome['rejected']}")
    console.print(f"written: {outcome['out']}")
