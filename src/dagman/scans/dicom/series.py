"""Groups headers by series, and separates several volumes of one series."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dagman.errors import ScanError
from dagman.scans.dicom.geometry import Plane
from dagman.scans.dicom.headers import Header
from dagman.scans.dicom.partition import Volume, part_slices
from dagman.scans.faults import explain_faults

_NAMED = {"CT", "MR"}
_LONGEST_KERNEL = 48
"""Largest number of characters; the standard allows two names of 16."""


@dataclass(frozen=True, kw_only=True)
class DicomGroup:
    """Files that belong together: one volume, or files that were refused for the same reason."""

    files: tuple[Path, ...]
    modality: str
    'As in DICOM, or "derived map" for blood flow and the like, which CT scanners write too.'
    patient: str = field(repr=False)
    "A pseudonym."
    uid: str = field(repr=False)
    "The SeriesInstanceUID."
    names_patient: bool = True
    "Whether there is a PatientID; otherwise the pseudonym is of the study."
    reason: str = ""
    "Why the files were refused; empty for a volume."
    part: str = ""
    'The tag that distinguishes it from other volumes of its series, such as "acquisition=2".'
    copies: tuple[Path, ...] = ()
    "Further copies of slices in `files`."
    notes: tuple[str, ...] = ()
    kernel: str = ""
    "Name of the reconstruction kernel; several names are separated by a slash."


def group_headers(headers: Iterable[Header], *, any_modality: bool = False) -> list[DicomGroup]:
    """Group headers into one group per volume, and one per refusal.

    Args:
        headers: the headers, in any order.
        any_modality: accept modalities other than CT and MR, if the user states the modality.
    """
    series: dict[tuple[str, str, str], list[Header]] = {}
    for header in sorted(headers, key=lambda header: header.path.as_posix()):
        # Files without a series are grouped by folder.
        uid = header.series_uid or header.path.parent.as_posix()
        series.setdefault((header.patient, header.study_uid, uid), []).append(header)
    return [group for members in series.values() for group in _split_or_refuse(members, any_modality)]


def _split_or_refuse(headers: Sequence[Header], any_modality: bool) -> list[DicomGroup]:
    """Split a series into groups; if its headers hold absurd values, refuse it, so that other series are not affected."""
    try:
        with explain_faults("its headers cannot be assembled into a volume", where=headers[0].path, do="Export it again"):
            return _split_series(headers, any_modality)
    except ScanError as error:
        return [_group(headers, f"{error.what}: export it again, or exclude it")]


def _split_series(headers: Sequence[Header], any_modality: bool) -> list[DicomGroup]:
    kept, copies = _drop_copies(headers)
    groups = [_group(members, f"the same images as in {first}; counted once") for (_, first), members in copies.items()]
    complete = {(header.instance_uid, header.planes) for header in kept if header.instance_uid and not header.is_truncated}
    refused: dict[str, list[Header]] = {}
    slices: list[Header] = []
    for header in kept:
        reason = _judge_file(header, any_modality)
        if not reason and header.is_truncated and (header.instance_uid, header.planes) in complete:
            # An incomplete copy must not make its series unusable.
            reason = "pixel data are cut short; another file contains the complete image: nothing to do"
        if reason:
            refused.setdefault(reason, []).append(header)
        else:
            slices.append(header)
    groups += [_group(members, reason) for reason, members in refused.items()]
    for volume in _split_slices(slices):
        groups.append(_judge_volume(volume))
    return groups


def _drop_copies(headers: Sequence[Header]) -> tuple[list[Header], dict[tuple[str, str], list[Header]]]:
    """Return the headers to use, and copies of them by (folder of the copies, folder of the originals)."""
    # The instance UID is not sufficient, since some anonymisers give all slices the same one, so the position must agree as well.
    # The bytes must agree, too, since others give two scans the same UIDs. Recompressed images are compared later, by their pixels.
    seen: dict[tuple[str, tuple[Plane, ...]], list[Header]] = {}
    kept: list[Header] = []
    copies: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        candidates = seen.setdefault((header.instance_uid, header.planes), []) if header.instance_uid else []
        first = next((other for other in candidates if filecmp.cmp(other.path, header.path, shallow=False)), None)
        if first is None:
            kept.append(header)
            candidates.append(header)
        else:
            copies.setdefault((header.path.parent.as_posix(), first.path.parent.as_posix()), []).append(header)
    return kept, copies


def _judge_file(header: Header, any_modality: bool) -> str:
    """Return why a file is not a slice of a volume, or ""."""
    if not header.is_image:
        return f"{header.modality or header.class_name} object, not an image: nothing to do"
    if "LOCALIZER" in header.image_type or "SCOUT" in header.image_type:
        return "localizer, not a volume: nothing to do"
    if "Secondary Capture" in header.class_name:
        return "secondary capture (a picture of the screen), not a scan: nothing to do"
    if header.samples > 1:
        return "holds RGB colours, not one value per pixel: give the scan itself, not a rendering"
    if header.modality not in _NAMED and not any_modality:
        return f"modality {header.modality or 'not given'}, neither CT nor MR: exclude it, or pass --modality ct or mr"
    if header.frames > 1 and len(header.planes) == 1:
        remedy = "export it as enhanced CT, or as one file per slice"
        return f"holds {header.frames} frames, but states only the position of the first: {remedy}"
    if not header.planes:
        return "has no position in the patient (position, orientation or pixel spacing is missing): export it again"
    return ""


def _split_slices(headers: Sequence[Header]) -> list[Volume]:
    volumes: list[list[Header]] = []
    for header in headers:
        # A multi-frame file is always a separate volume.
        is_single = len(header.planes) == 1
        fitting = (v for v in volumes if is_single and len(v[0].planes) == 1 and v[0].planes[0].fits(header.planes[0]))
        volume = next(fitting, None)
        if volume is None:
            volumes.append([header])
        else:
            volume.append(header)
    return [part for volume in volumes for part in part_slices(volume)]


def _judge_volume(volume: Volume) -> DicomGroup:
    cut = [header.path.name for header in volume.headers if header.is_truncated]
    if cut:
        more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
        return _group(volume.headers, f"{cut[0]}{more}: pixel data are cut short: copy or export the series again")
    if sum(len(header.planes) for header in volume.headers) < 2:
        return _group(volume.headers, "is one slice: give a volume of at least 2 slices")
    copies = tuple(header.path for header in volume.copies)
    return replace(_group(volume.headers), part=volume.part, copies=copies, notes=volume.notes)


def _group(headers: Sequence[Header], reason: str = "") -> DicomGroup:
    first = headers[0]
    return DicomGroup(
        files=tuple(header.path for header in headers),
        modality=first.modality if "PERFUSION" not in first.image_type else "derived map",
        patient=first.patient,
        uid=first.series_uid,
        names_patient=first.names_patient,
        reason=reason,
        kernel="/".join(sorted({name for header in headers if (name := _read_kernel(header))})),
    )


def _read_kernel(header: Header) -> str:
    """Read the kernel's name if a table can hold it: scanners write a few letters and digits, but nothing enforces that."""
    kernel = dict(header.volume_keys)["kernel"].strip()
    return kernel if len(kernel) <= _LONGEST_KERNEL and kernel.isprintable() else ""
