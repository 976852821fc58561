"""Scans to a store: workers write files whole, one writer accepts them, and the same call again goes on.

What the store holds depends on the scans alone: not on their order, the number of workers, or how often it was stopped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from dagman.errors import StoreError
from dagman.records.csv_file import read_csv, write_csv
from dagman.records.hashes import hash_bytes, hash_file
from dagman.records.journal import append_row, read_rows
from dagman.records.key import Key, use_key
from dagman.records.lock import hold_lock
from dagman.records.provenance import write_command
from dagman.records.stopping import catch_stops
from dagman.scans.discovery import WIDEST_GAP_MM, Refusal, Series, Tilt, find_series
from dagman.scans.scan import Modality
from dagman.store.estimate import Estimate, estimate_cost
from dagman.store.format import STAGING, locate_scan, read_info, read_preparation, write_info
from dagman.store.manifest import ManifestRow, read_manifest, write_manifest
from dagman.store.naming import settle_key
from dagman.store.preparation import Preparation
from dagman.store.series import DiskFull, explain_full_disk, explain_write_error, prepare_series
from dagman.store.workers import run_tasks

CHECKED_BYTES = 4 * 2**30
"""Bytes of a store up to which a repeated preparation compares every checksum: about three seconds. [ours]"""
_MODALITIES: dict[str, Modality | None] = {"auto": None, "ct": "CT", "mr": "MR"}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After each series: how many are done, of how many, and why this one was refused (None: it was kept)."""

    done: int
    total: int
    source: str
    refused: str | None


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What came of a preparation.

    `kept` scans of those given are in the store, `already` of them from before; `rejected` are listed with reasons in
    `refusals` and in `rejected.csv`. `bytes` is the size of all scans in the store.
    """

    path: Path
    kept: int
    already: int
    rejected: int
    seconds: float
    bytes: int
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()


def prepare_store(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    preparation: Preparation | None = None,
    *,
    workers: int | None = None,
    modality: Literal["auto", "ct", "mr"] = "auto",
    tilt: Tilt = "resample",
    widest_gap: float = WIDEST_GAP_MM,
    key: str | Path | None = None,
    on_event: Callable[[Estimate | Progress], None] | None = None,
) -> StoreSummary:
    """Prepare all scans below `paths` into the store `out`; called again it goes on where it stopped.

    `workers` processes (None: one a core); `modality` overrides what files say; `tilt`, `widest_gap`: see `read_series`; `key`: of
    the patients' pseudonyms (see `settle_key`). `on_event` hears an Estimate before the work and a Progress after each series.
    One bad scan, or one killed process, never stops the others.
    Raises ScanError when nothing was found, StoreError when nothing could be used, when `out` is another kind of folder or
    store, is being written by another process, or when the disk is full (what was done stays).
    """
    started = time.monotonic()
    out, preparation = Path(out), preparation or Preparation()
    _check_folder(out, preparation)
    naming, notes = settle_key(out, key)
    with use_key(naming):
        found = find_series(paths, modality=_MODALITIES[modality], tilt=tilt, widest_gap=widest_gap)
    notify = on_event or (lambda event: None)
    try:
        with hold_lock(out, StoreError), catch_stops():
            # Again: while the scans were looked for, another process may have begun and ended here, with other settings.
            _check_folder(out, preparation)
            if settle_key(out, key)[0] != naming:
                raise StoreError("was begun by another process in the meantime", where=out, do="Repeat the command")
            writer = _Writer(out, preparation, found.series, found.refused, naming)
            todo = [one for one in found.series if not writer.holds(one)]
            workers = max(1, min(workers or len(os.sched_getaffinity(0)), len(todo)))
            notify(estimate_cost(todo, len(found.series) - len(todo), out, preparation, workers))
            try:
                for done, (source, refused) in enumerate(writer.run(todo, workers), start=1):
                    notify(Progress(done=done, total=len(todo), source=source, refused=refused))
            finally:
                if not (out / "store.json").is_file():
                    raise StoreError("was deleted while scans were prepared into it", where=out, do="Repeat the command")
                summary = writer.close(started)
            write_command(out, "prepare", settings=asdict(preparation), inputs=writer.fingerprint(), outcome=_count(summary))
    except OSError as error:
        raise explain_write_error(error, out) from error
    if not summary.kept:
        do = f"Their reasons are in {out / 'rejected.csv'}"
        raise StoreError(f"all {summary.rejected} series were rejected", where=out, do=do)
    kept = ("file names are kept in rejected.csv, and nowhere else",) if summary.rejected else ()
    return replace(summary, notes=(*notes, *kept))


def hash_source(series: Series) -> str:
    """A hash of where a series lies and when it was written, without reading it.

    The times in it (to the nanosecond) keep a guessed path from being confirmed.
    """
    parts = []
    for path in series.files:
        status = path.stat()
        parts.append(f"{path.resolve()}\x1f{status.st_size}\x1f{status.st_mtime_ns}")
    return hash_bytes("\x1e".join(parts).encode())


class _Writer:
    """The one process that changes the store's tables."""

    def __init__(
        self, out: Path, preparation: Preparation, series: Sequence[Series], refused: Sequence[Refusal], key: Key | None
    ) -> None:
        self.out, self.preparation = out, preparation
        self.series = series
        self.journal = out / "journal.jsonl"
        shutil.rmtree(out / STAGING, ignore_errors=True)
        if not (out / "store.json").exists():
            write_info(out, preparation, None if key is None else key.fingerprint)
        self.rows = read_manifest(out)
        self.checks_all = sum(row.size for row in self.rows.values()) <= CHECKED_BYTES
        known = {row.source_hash: row.id for row in self.rows.values()}
        known |= {row["source_hash"]: row["id"] for row in read_rows(self.journal) if "source_hash" in row}
        # A file that vanished or was cut short is made again.
        self.known = {source: scan_id for source, scan_id in known.items() if self._is_whole(scan_id)}
        self.before = frozenset(self.known)
        self.hashes = {one.source: hash_source(one) for one in series}
        self.sources = {source_hash: source for source, source_hash in self.hashes.items()}
        # Of two files with one content the first by name counts, whichever is ready first; one from before stays.
        self.ranks = {self.hashes[one.source]: rank for rank, one in enumerate(series)}
        self.refused = {one.source: one.reason for one in refused}

    def holds(self, series: Series) -> bool:
        """Whether the store has this series' scan."""
        return self.hashes[series.source] in self.known

    def run(self, todo: Sequence[Series], workers: int) -> Iterator[tuple[str, str | None]]:
        """Prepare series; give each one's source and why it was refused, None when it was kept."""
        tasks = [(one, self.hashes[one.source]) for one in todo]
        work = partial(prepare_series, out=self.out, preparation=self.preparation)
        with contextlib.closing(run_tasks(work, tasks, workers)) as results:
            for index, result in results:
                source = todo[index].source
                if isinstance(result, DiskFull):
                    raise explain_full_disk(self.out)
                if isinstance(result, ManifestRow):
                    self._accept(result)
                    yield source, None
                else:
                    self.refused[source] = result.reason
                    yield source, result.reason

    def close(self, started: float) -> StoreSummary:
        """Fold the journal into the manifest, list what was refused, and count."""
        shutil.rmtree(self.out / STAGING, ignore_errors=True)
        kept = already = 0
        for one in self.series:
            source_hash = self.hashes[one.source]
            if source_hash not in self.known:
                continue
            winner = self.sources.get(self.rows[self.known[source_hash]].source_hash)
            if winner in (None, one.source):
                kept += 1
                already += source_hash in self.before
            else:
                self.refused[one.source] = f"same content as {winner}"
        refusals = tuple(Refusal(source=source, reason=reason) for source, reason in sorted(self.refused.items()))
        self._write_rejected(refusals)
        write_manifest(self.out, self.rows.values())
        return StoreSummary(
            path=self.out,
            kept=kept,
            already=already,
            rejected=len(refusals),
            seconds=time.monotonic() - started,
            bytes=sum(row.size for row in self.rows.values()),
            refusals=refusals,
        )

    def fingerprint(self) -> dict[str, str | int]:
        """What the scans given were, as a hash."""
        return {"series": len(self.series), "digest": hash_bytes("".join(sorted(self.hashes.values())).encode())}

    def _accept(self, row: ManifestRow) -> None:
        staged = self.out / STAGING / f"{row.source_hash}.b2nd"
        held = self.rows.get(row.id)
        if held is not None and self._is_whole(row.id) and self.ranks.get(held.source_hash, -1) < self.ranks[row.source_hash]:
            staged.unlink()
            append_row(self.journal, {"id": row.id, "source_hash": row.source_hash})
        else:
            target = locate_scan(self.out, row.id)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
            append_row(self.journal, asdict(row))
            self.rows[row.id] = row
        self.known[row.source_hash] = row.id

    def _is_whole(self, scan_id: str) -> bool:
        """Whether a scan's file is as its row says: by its checksum where the store is small, else by its size.

        A large store would take minutes to read; there the checksum is compared when a scan is first opened.
        """
        path = locate_scan(self.out, scan_id)
        if scan_id not in self.rows or not path.is_file() or path.stat().st_size != self.rows[scan_id].size:
            return False
        return not self.checks_all or hash_file(path) == self.rows[scan_id].checksum

    def _write_rejected(self, refusals: Sequence[Refusal]) -> None:
        """Reasons of this call, and of earlier calls for what was not given now."""
        reasons = {one.source: one.reason for one in refusals}
        path = self.out / "rejected.csv"
        if path.exists():
            given = {one.source for one in self.series}
            earlier = {row["source"]: row["reason"] for row in read_csv(path)}
            reasons = {source: reason for source, reason in earlier.items() if source not in given} | reasons
        write_csv(path, ["source", "reason"], sorted(reasons.items()))


def _check_folder(out: Path, preparation: Preparation) -> None:
    """Refuse a folder that is something else, a store of another format, or one made with other settings."""
    if out.exists() and not out.is_dir():
        raise StoreError("is a file, not a folder", where=out, do="Give another --out")
    if not (out / "store.json").exists():
        if out.exists() and any(one.name != ".lock" for one in out.iterdir()):
            raise StoreError("exists and is not a store", where=out, do="Give an empty or a new folder")
        return
    made = read_preparation(read_info(out), out)
    wanted = asdict(preparation)
    different = [f"{key} {value} (not {wanted[key]})" for key, value in asdict(made).items() if value != wanted[key]]
    if different:
        raise StoreError(f"was prepared with {', '.join(different)}", where=out, do="Give the same settings, or another --out")


def _count(summary: StoreSummary) -> dict[str, int | float]:
    return {"kept": summary.kept, "rejected": summary.rejected, "bytes": summary.bytes, "seconds": round(summary.seconds, 2)}
