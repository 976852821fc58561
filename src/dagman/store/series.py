"""Prepares one series as one file of a store, which is the task of a worker process."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from dagman.errors import DagmanError, StoreError, is_full_disk
from dagman.records.files import write_whole
from dagman.records.hashes import hash_bytes
from dagman.scans.discovery import Series
from dagman.scans.faults import describe_own_fault
from dagman.scans.reading import read_measured
from dagman.scans.scan import reorient_scan
from dagman.scans.verdict import judge_scan
from dagman.store.format import STAGING, name_scan, pack_voxels
from dagman.store.manifest import ManifestRow
from dagman.store.preparation import Preparation, prepare_scan
from dagman.store.sources import hash_files


@dataclass(frozen=True)
class Task:
    """A series to prepare, and the hash of its bytes at the previous preparation ("" if unknown)."""

    series: Series
    source_hash: str
    digest: str = ""


@dataclass(frozen=True)
class Prepared:
    """The series was prepared: the row of the scan, whose file was written, and the hash of the bytes it was read from."""

    row: ManifestRow
    digest: str


@dataclass(frozen=True)
class Unchanged:
    """The files are the same as at the previous preparation."""


@dataclass(frozen=True)
class Refused:
    """The series cannot be used."""

    reason: str
    lasting: bool = False
    "Whether this can change only with different files or a different version of dagman."


@dataclass(frozen=True)
class DiskFull:
    """The file could not be written because the disk is full, so that the preparation stops."""


def prepare_series(task: Task, out: Path, preparation: Preparation) -> Prepared | Unchanged | Refused | DiskFull:
    """Read, judge and prepare one series, and write it atomically as `out/staging/<source hash>.b2nd`.

    Any problem with the series is returned as `Refused`, so that a bad scan never affects the others.
    """
    series, source_hash = task.series, task.source_hash
    try:
        if task.digest and hash_files(series.files) == task.digest:
            return Unchanged()
        scan, evidence = read_measured(series)
        verdict = judge_scan(scan, evidence)
        if not verdict.accepted:
            return Refused(verdict.reason, lasting=True)
        prepared = prepare_scan(scan, preparation)
        frame = pack_voxels(prepared.voxels)
        with write_whole(out / STAGING / f"{source_hash}.b2nd") as temporary:
            temporary.write_bytes(frame)
        digest = hash_files(series.files)
    except DagmanError as error:
        remedy = f": {error.do[0].lower()}{error.do[1:]}" if error.do else ""
        return Refused(error.what + remedy, lasting=_is_of_content(error))
    except MemoryError:
        return Refused("too large for memory: try again with --workers 1")
    except Exception as error:
        if is_full_disk(error):
            return DiskFull()
        # A bug must not stop the other scans, and its reason can be reported.
        return Refused(f"cannot be prepared ({describe_own_fault(error)})")
    right, anterior, superior = reorient_scan(scan).spacing
    row = ManifestRow(
        id=name_scan(prepared.content_hash),
        patient=prepared.patient,
        patient_from=series.patient_from,
        modality=prepared.modality,
        shape=prepared.shape,
        spacing=prepared.spacing,
        affine=tuple(float(value) for value in prepared.affine.matrix.ravel()),
        crop_start=prepared.crop_box[0],
        crop_stop=prepared.crop_box[1],
        scale=prepared.scale,
        hu_evidence=None if verdict.evidence is None else asdict(verdict.evidence),
        content_hash=prepared.content_hash,
        source_hash=source_hash,
        checksum=hash_bytes(frame),
        size=len(frame),
        source_spacing=(round(right, 4), round(anterior, 4), round(superior, 4)),
        kernel=series.kernel,
    )
    return Prepared(row, digest)


def _is_of_content(error: DagmanError) -> bool:
    """Return whether an error is about the content of files, rather than permissions, memory, or a decoder that is missing."""
    cause: BaseException | None = error
    while isinstance(cause, DagmanError):
        if cause.__cause__ is None and cause.__suppress_context__:
            return False
        cause = cause.__cause__
    return cause is None or isinstance(cause, EOFError | zlib.error)


def explain_write_error(error: OSError, out: Path) -> StoreError:
    """Return the error to report if the store cannot be written."""
    if is_full_disk(error):
        return explain_full_disk(out)
    return StoreError(f"cannot be written or read ({error.strerror})", where=error.filename or out, do="Check its permissions")


def explain_full_disk(out: Path) -> StoreError:
    """Return the error to report if the disk is full."""
    return StoreError("the disk is full; what was prepared so far is kept", where=out, do="Free some space and repeat the command")
