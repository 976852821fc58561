"""One series to one file of a store: what a worker process does."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from pathlib import Path

from dagman.errors import DagmanError, StoreError
from dagman.records.files import write_whole
from dagman.records.hashes import hash_bytes
from dagman.scans.discovery import Refusal, Series
from dagman.scans.reading import read_series
from dagman.scans.verdict import judge_scan
from dagman.store.format import STAGING, name_scan, pack_voxels
from dagman.store.manifest import ManifestRow
from dagman.store.preparation import Preparation, prepare_scan

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class DiskFull:
    """The file could not be written; no other will be."""


def prepare_series(task: tuple[Series, str], out: Path, preparation: Preparation) -> ManifestRow | Refusal | DiskFull:
    """Read, judge and prepare one series, and write it whole as `out/staging/<source hash>.b2nd`.

    Whatever is wrong with the series comes back as a Refusal: one bad scan never costs the others.
    """
    series, source_hash = task
    try:
        scan = read_series(series)
        verdict = judge_scan(scan)
        if not verdict.accepted:
            return Refusal(source=series.source, reason=verdict.reason)
        prepared = prepare_scan(scan, preparation)
        frame = pack_voxels(prepared.voxels)
        with write_whole(out / STAGING / f"{source_hash}.b2nd") as temporary:
            temporary.write_bytes(frame)
    except DagmanError as error:
        remedy = f": {error.do[0].lower()}{error.do[1:]}" if error.do else ""
        return Refusal(source=series.source, reason=error.what + remedy)
    except MemoryError:
        return Refusal(source=series.source, reason="too large for the memory: try again with --workers 1")
    except Exception as error:
        if isinstance(error, OSError) and is_full_disk(error):
            return DiskFull()
        # A fault of a decoder, or of dagman: named, so that it can be reported, and the other scans go on.
        return Refusal(source=series.source, reason=f"cannot be prepared ({type(error).__name__}: {' '.join(str(error).split())})")
    return ManifestRow(
        id=name_scan(prepared.content_hash),
        patient=prepared.patient,
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
    )


def is_full_disk(error: OSError) -> bool:
    """Whether writing failed for want of space."""
    return error.errno in _FULL


def explain_write_error(error: OSError, out: Path) -> StoreError:
    """What the user reads when the store cannot be written."""
    if is_full_disk(error):
        return explain_full_disk(out)
    return StoreError(f"cannot be written or read ({error.strerror})", where=error.filename or out, do="Check its permissions")


def explain_full_disk(out: Path) -> StoreError:
    """What the user reads when the disk is full."""
    return StoreError("the disk is full; what was prepared so far is kept", where=out, do="Free some space and repeat the command")
