"""Write token grids of many scans to a folder, with one scan and one tile in memory at a time; can be interrupted and repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagman.encoder.dense.format import COLUMNS, Number, describe_dense, locate_maps, read_dense_info, write_grid
from dagman.encoder.dense.grids import compute_grids
from dagman.encoder.encoder import Encoder
from dagman.encoder.inputs.opening import OpenedScan, RefusedItem, explain_refusal, open_scans
from dagman.encoder.pooling import Pooling
from dagman.encoder.tiling import MOST_MEMORY
from dagman.errors import DagmanError, StoreError
from dagman.records.csv_file import read_csv, write_csv
from dagman.records.files import write_json, write_whole
from dagman.records.lock import hold_lock
from dagman.records.provenance import hide_path
from dagman.store.manifest import Store
from dagman.tables.items import Item


@dataclass(frozen=True, kw_only=True)
class DenseRow:
    """A scan whose grids are written; `kept` if they already existed."""

    item: Item
    content_hash: str
    kept: bool


def write_dense(
    encoder: Encoder,
    items: Iterable[Item],
    out: str | Path,
    *,
    store: Store | None = None,
    stages: Sequence[int] = Pooling().stages,
    number: Number = "float32",
    memory: int = MOST_MEMORY,
) -> Iterator[DenseRow | RefusedItem]:
    """Write the token grids of the scans of items, and yield a row for each; scans that are already in the folder are skipped.

    `dense.csv`, which lists all scans of the folder, is written at the end, also after an interruption.

    Args:
        encoder: The encoder.
        items: The items; several items of one scan count once.
        out: The folder.
        store: Store of the scans that items refer to by id.
        stages: Stages to write, from 1 to 4.
        number: Type of the numbers; float16 halves the size.
        memory: Bytes that a pass may need.

    Raises:
        StoreError: `out` contains something else, or grids of another encoder, other stages or another type, or another process is
            writing to it.
        SettingsError: A stage does not exist.
    """
    out = Path(out)
    stages = tuple(sorted(Pooling(stages=tuple(stages)).stages))
    info = describe_dense(encoder, stages, number)
    _refuse_foreign(out)
    with hold_lock(out, StoreError):
        _begin(out, info)
        written: dict[str, dict[str, Any]] = {row["id"]: dict(row) for row in _read_rows(out)}
        try:
            for outcome in open_scans(encoder.reader, _drop_parts(items), store):
                if isinstance(outcome, RefusedItem):
                    yield outcome
                    continue
                opened, (item, *_) = outcome
                try:
                    row = _write_scan(encoder, opened, item, out, stages, number, memory)
                except DagmanError as error:
                    yield RefusedItem(item=item, reason=explain_refusal(error, item))
                    continue
                written[item.name] = _describe_row(row, encoder)
                yield row
        finally:
            # Also after an interruption, as the grids written so far are complete.
            if written:
                rows = sorted(written.values(), key=lambda row: str(row["id"]))
                write_csv(out / "dense.csv", COLUMNS, ([row[name] for name in COLUMNS] for row in rows))


def _drop_parts(items: Iterable[Item]) -> list[Item]:
    """Keep one item per scan, as a table may have several structures and points in a scan."""
    first: dict[Path | str, Item] = {}
    for item in items:
        first.setdefault(item.scan, item)
    return list(first.values())


def _refuse_foreign(out: Path) -> None:
    if out.is_dir() and not (out / "dense.json").exists() and any(file.name != ".lock" for file in out.iterdir()):
        raise StoreError("exists and holds no feature maps", where=out, do="Give an empty or new folder")


def _begin(out: Path, info: dict[str, Any]) -> None:
    if not (out / "dense.json").exists():
        write_json(out / "dense.json", info)
        return
    held = read_dense_info(out)
    pairs = {"encoder": ("digest", "precision"), "stages": (), "dtype": ()}
    for name, parts in pairs.items():
        old, new = held.get(name), info[name]
        same = all(isinstance(old, dict) and old.get(part) == new[part] for part in parts) if parts else old == new
        if not same:
            what = (
                f"holds feature maps of another {name}" if name == "encoder" else f"holds feature maps of {name} {old}, not {new}"
            )
            raise StoreError(what, where=out, do="Give a new folder")


def _read_rows(out: Path) -> list[dict[str, str]]:
    return read_csv(out / "dense.csv") if (out / "dense.csv").is_file() else []


def _write_scan(
    encoder: Encoder, opened: OpenedScan, item: Item, out: Path, stages: Sequence[int], number: Number, memory: int
) -> DenseRow:
    folder = out / locate_maps(opened.content_hash)
    if folder.is_dir():
        return DenseRow(item=item, content_hash=opened.content_hash, kept=True)
    about = {
        "content_hash": opened.content_hash,
        "patient": item.patient,
        "modality": opened.scan.modality,
        "encoder": {"digest": encoder.digest, "what": encoder.describe()},
    }
    prepared = opened.prepare(encoder.reader)
    with compute_grids(encoder, prepared, stages, memory=memory, folder=out) as grids, write_whole(folder) as temporary:
        temporary.mkdir()
        for grid in grids:
            write_grid(temporary / f"x{grid.stage}.b2nd", grid, number, about)
    return DenseRow(item=item, content_hash=opened.content_hash, kept=False)


def _describe_row(row: DenseRow, encoder: Encoder) -> dict[str, Any]:
    scan = row.item.scan
    return {
        "id": row.item.name,
        "row": row.item.index,
        "scan": hide_path(str(scan)) if isinstance(scan, Path) else scan,
        "patient": row.item.patient,
        "content_hash": row.content_hash,
        "seen_in_pretraining": row.content_hash in encoder.config.scans_seen,
        "maps": str(locate_maps(row.content_hash)),
    }
