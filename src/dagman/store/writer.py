"""Prepares scans into a store: workers write files atomically, a single writer accepts them, and a repeated call continues.

The content of the store depends only on the scans, not on their order, the number of workers, or interruptions.
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
from dagman.records.counts import count_noun, list_some
from dagman.records.csv_file import read_csv, write_csv
from dagman.records.hashes import hash_bytes, hash_file
from dagman.records.journal import append_row, keep_rows, read_rows
from dagman.records.key import Key, use_key
from dagman.records.lock import hold_lock
from dagman.records.provenance import write_command
from dagman.records.stopping import catch_stops
from dagman.scans.dicom import HEADERS, KeptHeaders
from dagman.scans.discovery import WIDEST_GAP_MM, Discovery, Refusal, Series, Tilt, find_series
from dagman.scans.scan import Modality
from dagman.store.estimate import Estimate, estimate_cost
from dagman.store.format import STAGING, holds_store, locate_scan, read_info, read_preparation, write_info
from dagman.store.manifest import ManifestRow, read_manifest, write_manifest
from dagman.store.naming import settle_key
from dagman.store.preparation import Preparation
from dagman.store.series import DiskFull, Prepared, Refused, Task, Unchanged, explain_full_disk, explain_write_error, prepare_series
from dagman.store.sources import EarlierRefusals, Origin, Origins, describe_refusal, describe_sources, may_be_kept, name_roots
from dagman.store.upkeep.remarks import remark_on_scans
from dagman.store.workers import run_tasks
from dagman.tables.patients import state_patients

CHECKED_BYTES = 4 * 2**30
"""Size of a store up to which a repeated preparation compares all checksums, which takes about three seconds. [ours]"""
_MODALITIES: dict[str, Modality | None] = {"auto": None, "ct": "CT", "mr": "MR"}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress after each series."""

    done: int
    total: int
    source: str
    refused: str | None
    "Why the series was refused; None if it is in the store."


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """Result of a preparation."""

    path: Path
    kept: int
    "Number of given scans that are in the store."
    already: int
    "Number of these that were in the store before."
    rejected: int
    "Number of refusals."
    seconds: float
    bytes: int
    "Size of all scans in the store."
    refusals: tuple[Refusal, ...]
    "Sources that were refused, with reasons, which are also in `rejected.csv`."
    replaced: tuple[str, ...] = ()
    "Sources whose scans were prepared again because their files had changed."
    vanished: tuple[str, ...] = ()
    "Ids of scans that are kept although their sources are gone."
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
    patients: str | Path | None = None,
    dask: str | None = None,
    on_event: Callable[[Estimate | Progress], None] | None = None,
) -> StoreSummary:
    """Prepare scans into a store; a repeated call continues where the last one stopped.

    A scan whose files have changed since is replaced; a scan whose files are gone is kept and reported. A bad scan, or a worker
    that is killed, never stops the others.

    Args:
        paths: files, folders or archives of scans.
        out: the store, which is created if needed.
        preparation: settings; by default 2 mm, cropped to the body.
        workers: number of processes; None for one per core.
        modality: overrides the modality stated in files.
        tilt, widest_gap: see `read_series`.
        key: key of the patients' pseudonyms (see `settle_key`).
        patients: assignment of scans to patients (see `state_patients`).
        dask: address of a Dask scheduler (see `run_tasks`).
        on_event: called with an `Estimate` before the work, and a `Progress` after each series.

    Raises:
        ScanError: if no scans were found.
        StoreError: if no scan can be used, `out` is not a store or one with different settings, another process is writing to it,
            or the disk is full (what has been prepared is kept).
    """
    started = time.monotonic()
    out, preparation = Path(out), preparation or Preparation()
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    _check_folder(out, preparation)
    naming, notes = settle_key(out, key)
    with use_key(naming):
        kept = KeptHeaders(out / HEADERS)
        found = find_series(given, modality=_MODALITIES[modality], tilt=tilt, widest_gap=widest_gap, kept=kept)
        found = state_patients(found, patients)
    notify = on_event or (lambda event: None)
    try:
        with hold_lock(out, StoreError), catch_stops():
            # Checked again, since another process may have created the store with other settings during the search for scans.
            _check_folder(out, preparation)
            if settle_key(out, key)[0] != naming:
                raise StoreError("was created by another process in the meantime", where=out, do="Repeat the command")
            writer = _Writer(out, preparation, found, given, naming)
            kept.write()
            todo = [one for one in found.series if not writer.holds(one) and not writer.refuses(one)]
            workers = max(1, min(workers or len(os.sched_getaffinity(0)), len(todo)))
            notify(estimate_cost(todo, len(writer.already), out, preparation, workers))
            try:
                for done, (source, refused) in enumerate(writer.run(todo, workers, dask), start=1):
                    notify(Progress(done=done, total=len(todo), source=source, refused=refused))
            finally:
                if not (out / "store.json").is_file():
                    raise StoreError("was deleted while scans were prepared into it", where=out, do="Repeat the command")
                summary = writer.close(started)
            write_command(out, "prepare", settings=asdict(preparation), inputs=writer.fingerprint(), outcome=_count(summary))
    except OSError as error:
        raise explain_write_error(error, out) from error
    if not summary.kept:
        is_single = summary.rejected == 1
        rejected = "the only series was rejected" if is_single else f"all {summary.rejected} series were rejected; the first"
        do = f"{'It is listed' if is_single else 'All are listed'} in {out / 'rejected.csv'}"
        raise StoreError(f"{rejected}: {summary.refusals[0].reason.rstrip('.')}", where=out, do=do)
    listed = ("file names are kept only in rejected.csv",) if summary.rejected else ()
    remarks = remark_on_scans({source: writer.rows[scan_id] for source, scan_id in writer.ids.items()}, writer.rows.values())
    return replace(summary, notes=(*notes, *remarks, *_note_sources(summary), *listed))


class _Writer:
    """Changes the store's tables, in a single process."""

    def __init__(self, out: Path, preparation: Preparation, found: Discovery, given: Sequence[Path], key: Key | None) -> None:
        self.out, self.preparation = out, preparation
        self.series = found.series
        self.journal = out / "journal.jsonl"
        shutil.rmtree(out / STAGING, ignore_errors=True)
        if not (out / "store.json").exists():
            write_info(out, preparation, None if key is None else key.fingerprint)
        self.rows = read_manifest(out)
        written = read_rows(self.journal)
        self.origins = Origins.read(self.rows, written)
        self.earlier_refusals = EarlierRefusals.read(written)
        self.checks_all = sum(row.size for row in self.rows.values()) <= CHECKED_BYTES
        # A file that is missing or truncated is prepared again.
        self.whole = {scan_id for scan_id in self.rows if self._is_whole(scan_id)}
        self.seen = describe_sources(self.series, given, key)
        self.roots = name_roots(given, key)
        self.names = {source.source_hash: name for name, source in self.seen.items()}
        # Of two sources with the same content, the first by name is used, in whatever order they are done; an existing one stays.
        self.ranks = {self.seen[one.source].source_hash: rank for rank, one in enumerate(self.series)}
        self.ids: dict[str, str] = {}
        self.already: set[str] = set()
        self.replaced: list[str] = []
        self.dropped: set[str] = set()
        self.refused = {one.source: one.reason for one in found.refused}
        for scan_id in [scan_id for scan_id in self.rows if not self.origins.list_of(scan_id)]:
            # A writer was killed after it added a new version and before it removed the old one.
            self._drop(scan_id)

    def holds(self, series: Series) -> bool:
        """Return whether the store has the scan of this series, and its files have not changed since."""
        source = self.seen[series.source]
        origin = self.origins.find(source)
        if origin is None or origin.id not in self.whole:
            return False
        if origin.source.source_hash != source.source_hash or origin.source.stamp not in ("", source.stamp):
            return False
        self._settle(series, origin)
        return True

    def refuses(self, series: Series) -> bool:
        """Return whether the same files were refused before by the same rules."""
        reason = self.earlier_refusals.find(series, self.seen[series.source])
        if reason is not None:
            self._refuse(series, reason)
        return reason is not None

    def run(self, todo: Sequence[Series], workers: int, dask: str | None) -> Iterator[tuple[str, str | None]]:
        """Prepare series, and yield the source of each and why it was refused (None if it was not)."""
        tasks = [self._describe_task(one) for one in todo]
        work = partial(prepare_series, out=self.out, preparation=self.preparation)
        with contextlib.closing(run_tasks(work, tasks, workers, dask=dask if tasks else None)) as results:
            for index, result in results:
                series = todo[index]
                if isinstance(result, DiskFull):
                    raise explain_full_disk(self.out)
                if isinstance(result, Prepared):
                    self._accept(series, result)
                elif isinstance(result, Unchanged):
                    origin = self.origins.find(self.seen[series.source])
                    assert origin is not None
                    self._settle(series, origin)
                else:
                    self._refuse(series, result.reason)
                    if isinstance(result, Refused) and result.lasting and may_be_kept(series, result.reason):
                        append_row(self.journal, describe_refusal(series, self.seen[series.source], result.reason))
                yield series.source, self.refused.get(series.source)

    def close(self, started: float) -> StoreSummary:
        """Write the journal's rows into the manifest, list refusals, and summarise."""
        shutil.rmtree(self.out / STAGING, ignore_errors=True)
        kept = already = 0
        for name, scan_id in self.ids.items():
            winner = self.names.get(self.rows[scan_id].source_hash)
            if winner in (None, name):
                kept += 1
                already += name in self.already
            else:
                self.refused[name] = f"same content as {winner}"
        refusals = tuple(Refusal(source=source, reason=reason) for source, reason in sorted(self.refused.items()))
        self._write_rejected(refusals)
        if gone := self.dropped - self.rows.keys():
            keep_rows(self.journal, lambda row: row.get("id") not in gone)
        write_manifest(self.out, self.rows.values())
        return StoreSummary(
            path=self.out,
            kept=kept,
            already=already,
            rejected=len(refusals),
            seconds=time.monotonic() - started,
            bytes=sum(row.size for row in self.rows.values()),
            refusals=refusals,
            replaced=tuple(sorted(self.replaced)),
            vanished=tuple(self.origins.list_vanished(self.seen.values(), self.roots)),
        )

    def fingerprint(self) -> dict[str, str | int]:
        """Return the number of given series, and a hash of their sources."""
        return {
            "series": len(self.series),
            "digest": hash_bytes("".join(sorted(source.source_hash for source in self.seen.values())).encode()),
        }

    def _describe_task(self, series: Series) -> Task:
        source = self.seen[series.source]
        origin = self.origins.find(source)
        known = origin is not None and origin.id in self.whole
        return Task(series, source.source_hash, origin.digest if origin is not None and known else "")

    def _accept(self, series: Series, prepared: Prepared) -> None:
        """Accept a prepared scan, which replaces the previous scan of the same source."""
        row, source = prepared.row, self.seen[series.source]
        origin, earlier = Origin(id=row.id, source=source, digest=prepared.digest), self.origins.find(source)
        before = self.rows.get(earlier.id) if earlier is not None else None
        if row.patient_from == "assumed" and before is not None and before.patient_from == "user":
            # The file has changed, but not the patient that the user stated.
            row = replace(row, patient=before.patient, patient_from="user")
        staged = self.out / STAGING / f"{row.source_hash}.b2nd"
        if row.id in self.whole and not self._comes_first(row, earlier):
            staged.unlink()
            append_row(self.journal, origin.to_json())
        else:
            target = locate_scan(self.out, row.id)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
            self._write_row(row, origin)
        self.whole.add(row.id)
        self.origins.add(origin)
        self.ids[series.source] = row.id
        if earlier is not None and earlier.id != row.id:
            self.replaced.append(series.source)
            self._release(earlier)

    def _comes_first(self, row: ManifestRow, earlier: Origin | None) -> bool:
        """Return whether a row replaces the existing one: its source was read again, or comes first by name."""
        existing = self.rows[row.id].source_hash
        if earlier is not None and earlier.source.source_hash == existing:
            return True
        return self.ranks.get(existing, -1) >= self.ranks[row.source_hash]

    def _settle(self, series: Series, origin: Origin) -> None:
        """Record that the store already has the scan of a series, with the present name and times of its source."""
        source = self.seen[series.source]
        self.ids[series.source] = origin.id
        self.already.add(series.source)
        if series.patient_from == "user" and series.patient != self.rows[origin.id].patient:
            # The user stated the patient after the scan was prepared.
            self._write_row(replace(self.rows[origin.id], patient=str(series.patient), patient_from="user"), origin)
        if source == origin.source:
            return
        updated, row = replace(origin, source=source), self.rows[origin.id]
        if row.source_hash == origin.source.source_hash != source.source_hash:
            self._write_row(replace(row, source_hash=source.source_hash), updated)
        else:
            append_row(self.journal, updated.to_json())
        self.origins.add(updated)

    def _release(self, origin: Origin) -> None:
        """Drop a scan whose source has changed, unless another source has the same scan."""
        others = self.origins.list_of(origin.id)
        row = self.rows.get(origin.id)
        if row is not None and not others:
            self._drop(origin.id)
        elif row is not None and row.source_hash == origin.source.source_hash:
            self._write_row(replace(row, source_hash=others[0].source.source_hash), others[0])

    def _drop(self, scan_id: str) -> None:
        append_row(self.journal, {"id": scan_id, "dropped": True})
        locate_scan(self.out, scan_id).unlink(missing_ok=True)
        del self.rows[scan_id]
        self.whole.discard(scan_id)
        self.dropped.add(scan_id)

    def _write_row(self, row: ManifestRow, origin: Origin) -> None:
        append_row(self.journal, {**asdict(row), **origin.to_json()})
        self.rows[row.id] = row

    def _refuse(self, series: Series, reason: str) -> None:
        origin = self.origins.find(self.seen[series.source])
        kept = origin is not None and origin.id in self.whole
        self.refused[series.source] = f"{reason}; the scan prepared before is kept" if kept else reason

    def _is_whole(self, scan_id: str) -> bool:
        """Return whether a scan's file agrees with its row, by checksum in a small store, otherwise by size.

        A large store would take minutes to read; its checksums are compared when a scan is first opened.
        """
        path = locate_scan(self.out, scan_id)
        if scan_id not in self.rows or not path.is_file() or path.stat().st_size != self.rows[scan_id].size:
            return False
        return not self.checks_all or hash_file(path) == self.rows[scan_id].checksum

    def _write_rejected(self, refusals: Sequence[Refusal]) -> None:
        """Write the refusals of this call, and those of earlier calls for sources that were not given now."""
        reasons = {refusal.source: refusal.reason for refusal in refusals}
        path = self.out / "rejected.csv"
        if path.exists():
            given = {one.source for one in self.series}
            earlier = {row["source"]: row["reason"] for row in read_csv(path)}
            reasons = {source: reason for source, reason in earlier.items() if source not in given} | reasons
        write_csv(path, ["source", "reason"], sorted(reasons.items()))


def _note_sources(summary: StoreSummary) -> list[str]:
    notes = []
    if summary.replaced:
        count = count_noun(len(summary.replaced), "scan was", "scans were")
        notes.append(f"{count} replaced, as the files have changed since: {list_some(summary.replaced)}")
    if summary.vanished:
        count = count_noun(len(summary.vanished), "scan is kept whose files are", "scans are kept whose files are")
        do = f"to remove them: dagman store remove {summary.path} ID"
        notes.append(f"{count} no longer below the given paths, or no longer usable: {list_some(summary.vanished)}; {do}")
    return notes


def _check_folder(out: Path, preparation: Preparation) -> None:
    """Refuse an output folder that is not a store, or a store with a different format or settings."""
    if not holds_store(out):
        return
    made = read_preparation(read_info(out), out)
    wanted = asdict(preparation)
    different = [f"{key} {value} (not {wanted[key]})" for key, value in asdict(made).items() if value != wanted[key]]
    if different:
        raise StoreError(f"was prepared with {', '.join(different)}", where=out, do="Give the same settings, or another --out")


def _count(summary: StoreSummary) -> dict[str, int | float]:
    return {
        "kept": summary.kept,
        "rejected": summary.rejected,
        "replaced": len(summary.replaced),
        "vanished": len(summary.vanished),
        "bytes": summary.bytes,
        "seconds": round(summary.seconds, 2),
    }
