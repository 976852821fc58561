"""`dagman embed`: feature vectors of scans, of a table's items, or of the labels of maps; or the token grids themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from dagman.cli.scans.options import Dask
from dagman.cli.tasks.task_options import Coordinates, CropMm, CropSpacing, Ids, KeyPath, PatientsOf, Weights, one_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dagman.encoder.dense.format import Number
    from dagman.encoder.encoder import Encoder
    from dagman.encoder.inputs.opening import RefusedItem
    from dagman.encoder.items import FeatureRow
    from dagman.encoder.pooling import Pooling
    from dagman.scans.discovery import Refusal
    from dagman.store.manifest import Store
    from dagman.tables.items import Item

T = TypeVar("T")
app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman embed runs/first nodules.csv --out nodules.parquet --crop-spacing 0.7"


@app.command(epilog=_EXAMPLE)
def embed_sources(
    encoder: Annotated[str, typer.Argument(help="A run, an encoder folder, or scratch:SIZE.")],
    sources: Annotated[
        list[Path], typer.Argument(help="Scans (files, folders, glob patterns, or @LIST, a file of paths), a table, or a store.")
    ],
    out: Annotated[Path, typer.Option(help="Output file (Parquet or CSV); with --dense, an output folder.")],
    dense: Annotated[
        bool, typer.Option("--dense", help="Write feature maps of whole scans; read regions of them with `dagman.open_dense`.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(callback=one_of("dtype", "float32", "float16"), help="Data type of --dense: float32 or float16.")
    ] = "float32",
    label_map: Annotated[
        str | None,
        typer.Option(
            metavar="MAP|FOLDER|COLUMN",
            help="Pool one vector per label of a label map: the map of a single scan, a folder of maps named like the scans, "
            "or the column of the table that holds them.",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV file with the columns id and name, which names the values of label maps.")
    ] = None,
    crop_mm: CropMm = None,
    crop_spacing: CropSpacing = None,
    stages: Annotated[str, typer.Option(help="Encoder stages to use, comma-separated.")] = "1,2,3,4",
    pools: Annotated[str, typer.Option(help="Statistics to pool from each stage, comma-separated.")] = "mean,std,max",
    store: Annotated[Path | None, typer.Option(help="Store with the scans that the table refers to by id.")] = None,
    patient: Annotated[str, typer.Option(help="Column of the table with the patients.")] = "patient",
    ids: Ids = "checked",
    mask_label: Annotated[int | None, typer.Option(help="Value of the structure in all masks of the table.")] = None,
    coordinates: Coordinates = "ras",
    cache: Annotated[Path | None, typer.Option(help="Folder for cached feature vectors.")] = None,
    weights: Weights = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto.")] = "fp32",
    patients: PatientsOf = None,
    key: KeyPath = None,
    dask: Dask = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Extract one feature vector per item, as Parquet or CSV: of whole scans, or pooled within masks or around points.

    With --label-map, one vector per label of each scan, with the label's name, voxel count and volume. With --dense, OUT is a
    folder of feature maps with their affine and spacing; repeat the command to resume.
    Unusable items are listed with the reason in OUT.rejected.csv; OUT.command.json records the command, settings and inputs.
    """
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.devices import tune_allocator
    from dagman.encoder.loading import load_encoder
    from dagman.errors import SettingsError
    from dagman.records.sources import expand_sources

    _refuse_idle(
        dense,
        label_map,
        given={
            "--labels": (labels is not None, "--label-map"),
            "--dtype": (dtype != "float32", "--dense"),
            "--pools": (pools != "mean,std,max", "vectors"),
            "--crop-mm": (crop_mm is not None, "crops"),
            "--crop-spacing": (crop_spacing is not None, "crops"),
            "--cache": (cache is not None, "crops"),
            "--dask": (dask is not None, "crops"),
        },
    )
    if not dense and out.suffix.lower() not in (".parquet", ".pq", ".csv"):
        raise SettingsError(
            "the output file must be Parquet or CSV", where=out, do="Give --out a name that ends in .parquet or .csv"
        )
    sources = expand_sources(sources)
    pooling = _read_pooling(stages, pools)
    # A worker may have other devices than this machine, and the CPU gives the same bits everywhere.
    device = "cpu" if dask and device == "auto" else device
    tune_allocator()
    with follow_parts(Console(stderr=True), out.parent, log=f"{out.name}.run.log") as notify:
        notify("reading the encoder and the list of scans")
        loaded = load_encoder(encoder, device=device, precision=precision, weights=weights)
        listed = _list_items(sources, store, patient, mask_label, coordinates, ids, patients)
    work = _Work(encoder=loaded, sources=sources, listed=listed, out=out, pooling=pooling, quiet=as_json)
    if dense:
        outcome, reasons, notes = _embed_dense(work, dtype)
    elif label_map is not None:
        outcome, reasons, notes = _embed_labels(work, label_map, labels)
    else:
        outcome, reasons, notes = _embed_items(work, crop_mm, crop_spacing, cache, dask=dask, weights=weights)
    positions = [line] if (line := loaded.describe_positions()) else []
    # The report on imported weights includes merges that have to be stated.
    imported = [] if loaded.imported is None else [str(loaded.imported)]
    _report(outcome, reasons, [loaded.describe(), *positions, *imported, *listed.notes, *notes], as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """The items to embed, the store and the table that they are from, what was already refused, and notes to print."""

    items: list[Item]
    store: Store | None = None
    table: Path | None = None
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The inputs that all forms of the command share."""

    encoder: Encoder
    sources: list[Path]
    listed: _Listed
    out: Path
    pooling: Pooling
    quiet: bool

    def record(self, settings: dict[str, Any], outcome: dict[str, Any], folder: Path, name: str) -> None:
        from dagman.records.provenance import hide_path, write_command

        settings = {**settings, "sources": [hide_path(str(source)) for source in self.sources]}
        inputs = {"encoder": self.encoder.source, "encoder_digest": self.encoder.digest}
        write_command(folder, "embed", name=name, settings=settings, inputs=inputs, outcome=outcome)

    def list_reasons(self, left_out: list[RefusedItem]) -> list[tuple[str, str]]:
        given = [(one.source, one.reason) for one in self.listed.refused]
        return [*given, *((one.item.name, one.reason) for one in left_out)]

    def refuse_nothing(self, rejected: Path) -> None:
        """Raise TaskError if there is no item, after the reasons are written."""
        from dagman.encoder.feature_file import write_refused
        from dagman.errors import TaskError

        if not self.listed.items:
            refused = self.listed.refused
            write_refused(rejected, self.list_reasons([]))
            first = f": {refused[0].source}: {refused[0].reason}" if refused else ""
            raise TaskError(f"there are no items to embed{first}", where=", ".join(map(str, self.sources)))


_Outcome = tuple[dict[str, Any], list[tuple[str, str]], list[str]]
"""What is printed as JSON, what was refused with the reason, and notes."""


def _embed_items(
    work: _Work, crop_mm: float | None, crop_spacing: float | None, cache: Path | None, *, dask: str | None, weights: str
) -> _Outcome:
    from dagman.encoder.feature_file import describe_pooling
    from dagman.encoder.items import stream_features
    from dagman.store.crops import CropSpec

    crop = CropSpec(crop_mm, crop_spacing)
    items, pooling = work.listed.items, work.pooling
    rows = stream_features(
        work.encoder, items, store=work.listed.store, pooling=pooling, crop=crop, cache=cache, dask=dask, weights=weights
    )
    return _write_vectors(work, rows, len(items), describe_pooling(pooling, crop), by_label=False)


def _embed_labels(work: _Work, label_map: str, labels: Path | None) -> _Outcome:
    from dagman.encoder.dense.labels import stream_labels
    from dagman.encoder.feature_file import describe_pooling
    from dagman.records.provenance import hide_path
    from dagman.store.crops import CropSpec
    from dagman.tables.label_columns import give_maps
    from dagman.tables.labels import read_label_names

    names = read_label_names(labels) if labels else {}
    items = give_maps(work.listed.items, label_map, work.listed.table)
    settings = {
        **describe_pooling(work.pooling, CropSpec()),
        "label_map": label_map if work.listed.table else hide_path(label_map),
        "label_names": {str(value): name for value, name in names.items()},
    }
    rows = stream_labels(
        work.encoder, items, store=work.listed.store, pooling=work.pooling, names=names, folder=work.out.absolute().parent
    )
    return _write_vectors(work, rows, None, settings, by_label=True)


def _write_vectors(
    work: _Work, rows: Iterator[FeatureRow | RefusedItem], total: int | None, settings: dict[str, Any], *, by_label: bool
) -> _Outcome:
    from dagman.encoder.embedding import list_columns
    from dagman.encoder.feature_file import write_features, write_refused
    from dagman.tables.items import note_cut

    out = work.out
    rejected = out.with_name(f"{out.name}.rejected.csv")
    work.refuse_nothing(rejected)
    columns = list_columns(work.encoder, work.pooling)
    left_out: list[RefusedItem] = []
    cut: dict[str, float] = {}
    try:
        shown = _show_progress(_collect_cut(rows, cut), total, out, quiet=work.quiet)
        count = write_features(out, shown, work.encoder, columns, settings, left_out, by_label=by_label)
    finally:
        reasons = work.list_reasons(left_out)
        write_refused(rejected, reasons)
    outcome = {"written": count, "refused": len(reasons), "columns": len(columns), "out": str(out), "rejected": str(rejected)}
    work.record(settings, outcome, out.parent, f"{out.name}.command.json")
    return outcome, reasons, note_cut(cut)


def _embed_dense(work: _Work, dtype: str) -> _Outcome:
    from dagman.encoder.dense.writing import DenseRow, write_dense
    from dagman.encoder.feature_file import write_refused
    from dagman.errors import TaskError
    from dagman.records.counts import count_noun

    items, out = work.listed.items, work.out
    rejected = out / "rejected.csv"
    if not items:
        work.refuse_nothing(out.with_name(f"{out.name}.rejected.csv"))
    stages = work.pooling.stages
    rows = write_dense(work.encoder, items, out, store=work.listed.store, stages=stages, number=cast("Number", dtype))
    left_out: list[RefusedItem] = []
    done: list[DenseRow] = []
    total = len({item.scan for item in items})
    try:
        for row in _show_progress(rows, total, out / "embed", quiet=work.quiet):
            if isinstance(row, DenseRow):
                done.append(row)
            else:
                left_out.append(row)
    finally:
        reasons = work.list_reasons(left_out)
        if (out / "dense.json").is_file():
            write_refused(rejected, reasons)
    if not done:
        raise TaskError(f"none of {count_noun(total, 'scan')} can be embedded; the first: {': '.join(reasons[0])}", where=out)
    kept = sum(row.kept for row in done)
    outcome = {"written": len(done) - kept, "kept": kept, "refused": len(reasons), "out": str(out), "rejected": str(rejected)}
    work.record({"stages": list(stages), "dtype": dtype, "dense": True}, outcome, out, "command.json")
    return outcome, reasons, []


def _refuse_idle(dense: bool, label_map: str | None, given: dict[str, tuple[bool, str]]) -> None:
    """Raise SettingsError for an option that would do nothing in the requested form."""
    from dagman.errors import SettingsError

    if dense and label_map is not None:
        raise SettingsError("--dense and --label-map cannot be combined", do="Run the command once with each")
    forms = {"--dense": dense, "--label-map": label_map is not None, "vectors": not dense, "crops": not dense and label_map is None}
    for option, (is_given, form) in given.items():
        if is_given and not forms[form]:
            do = f"Give {form}, or leave {option} out" if form.startswith("--") else "Leave it out"
            raise SettingsError(
                f"{option} has no effect {'here' if form.startswith('--') else 'with ' + ('--dense' if dense else '--label-map')}",
                do=do,
            )


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
) -> _Listed:
    """Items of one table, of one store, or of scans."""
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
        raise SettingsError(
            "is a table or a store, which cannot be combined with other sources", where=special[0], do="Give it as the only source"
        )
    if special and patients:
        do = "Omit it: a table has a column of patients (--patient), and a store records its patients"
        raise SettingsError("--patients applies only to scans given as files", where=special[0], do=do)
    if not special:
        items, refused = list_scans(sources, patients=patients)
        names = name_relative([item.name for item in items], sources)
        items = [replace(item, name=name) for item, name in zip(items, names, strict=True)]
        return _Listed(items=items, refused=refused, notes=[*note_patients(items), describe_names()] if items else [])
    if (special[0] / "store.json").exists():
        opened = Store(special[0])
        items = list_stored(opened)
        return _Listed(items=items, store=opened, notes=note_patients(items))
    held = Store(store) if store else None
    stored = [row.id for row in held.rows] if held else []
    table = read_table(special[0], patient=patient, mask_label=mask_label, coordinates=coordinates, known_ids=stored, ids=ids)
    return _Listed(items=list(table.items), store=held, table=table.path, notes=[note.text for note in table.notes])


def _collect_cut(rows: Iterator[FeatureRow | RefusedItem], cut: dict[str, float]) -> Iterator[FeatureRow | RefusedItem]:
    """The rows as they come; the shares of their masks that lie outside their scans go into `cut`."""
    from dagman.encoder.items import FeatureRow

    for row in rows:
        if isinstance(row, FeatureRow) and row.cut:
            cut[row.item.name] = row.cut
        yield row


def _show_progress(rows: Iterator[T], total: int | None, out: Path, *, quiet: bool) -> Iterable[T]:
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
    if "columns" in outcome:
        done = f"{count_noun(outcome['written'], 'item')} embedded, {outcome['columns']} features each"
    else:
        done = f"token grids of {count_noun(outcome['written'], 'scan')} written, {outcome['kept']} there already"
    console.print(f"{done}; {outcome['refused']} refused")
    for source, reason in reasons[:20]:
        console.print(f"  refused {source}: {reason}")
    if len(reasons) > 20:
        console.print(f"  and {len(reasons) - 20} more: {outcome['rejected']}")
    console.print(f"written: {outcome['out']}")
