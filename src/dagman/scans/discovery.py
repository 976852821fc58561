"""What lies below the given folders: every series that may be a scan, and every refusal with its reason.

Headers alone are read here. The result depends on the files, not on the order in which a file system lists them.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dagman.errors import DagmanError, ScanError
from dagman.records.names import suggest_path
from dagman.scans.archives import enter_archive, is_archive, reach_place, show_place
from dagman.scans.dicom import (
    KeptHeaders,
    NamedGroup,
    SeriesName,
    group_headers,
    is_directory_file,
    list_by_uid,
    list_images,
    name_groups,
    name_selected,
    parse_name,
    read_series_uid,
)
from dagman.scans.dicom import headers as dicom_headers
from dagman.scans.faults import explain_faults
from dagman.scans.formats import DICOM, Format, find_format, list_titles
from dagman.scans.pseudonyms import name_patients
from dagman.scans.scan import Modality

Tilt = Literal["resample", "refuse"]
PatientFrom = Literal["file", "assumed", "user"]

WIDEST_GAP_MM = 3.0
"""A gap that slices of common thickness bridge; a nodule of 6 mm cannot hide in it. [ours]"""

_ARCHIVES = (".7z", ".rar", ".tar.zst")
"""Those that are not unpacked; for the others see `archives`."""

_PAIR = (
    "is Analyze 7.5, or a NIfTI pair of .hdr and .img",
    "Convert it to .nii.gz; Analyze does not state which side is left",
)
_FREESURFER = ("is of FreeSurfer", "Convert it: mri_convert SCAN.mgz SCAN.nii.gz")
_PACKED = ("is compressed in a format that dagman does not read", "Decompress it, or compress it as .nii.gz")
_UNREAD: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys((".hdr", ".img", ".img.gz", ".hdr.gz"), _PAIR),
    **dict.fromkeys((".mgz", ".mgh"), _FREESURFER),
    **dict.fromkeys((".nii.bz2", ".nii.zst"), _PACKED),
    ".mnc": ("is MINC", "Convert it: mnc2nii SCAN.mnc SCAN.nii"),
    ".gipl": ("is in a format that dagman does not read", None),
}
"""Files that may hold scans all the same: what they are, and what to do. They are named as refused, not passed over."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One volume that may be a scan; `source` names it to every command (see `dicom.naming`), unique among all series found.

    `kind` is the name of its format (`formats.FORMATS`). `modality` is None where the file does not say it; `patient` is a
    pseudonym; `notes` say what finding it had to decide.
    """

    kind: str
    files: tuple[Path, ...]
    source: str
    modality: Modality | None = None
    patient: str | None = field(default=None, repr=False)
    patient_from: PatientFrom = "file"
    "What names the patient: the file itself, nothing (the scan is treated as a separate patient), or the user."
    uid: str | None = field(default=None, repr=False)
    kernel: str = ""
    "Reconstruction kernel as the files name it; empty where they do not."
    notes: tuple[str, ...] = ()
    tilt: Tilt = "resample"
    "What is done where the gantry was tilted."
    widest_gap: float = WIDEST_GAP_MM
    "Distance between slices (mm) up to which uneven slices, or missing ones, are interpolated."

    @property
    def patient_assumed(self) -> bool:
        """Whether nothing states the patient, so that the scan is treated as a separate patient."""
        return self.patient_from == "assumed"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Something that is left out: where it lies, and why, with what to do."""

    source: str
    reason: str

    @classmethod
    def from_error(cls, source: str, error: DagmanError) -> Refusal:
        """The refusal of `source` for an error met while reading it; a file named in the error stays named."""
        remedy = f": {error.do[0].lower()}{error.do[1:]}" if error.do else ""
        place = f"{Path(error.where).name}: " if error.where and str(show_place(error.where)) != source else ""
        return cls(source=source, reason=f"{place}{error.what}{remedy}")


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """Everything found, both lists ordered by source."""

    series: tuple[Series, ...]
    refused: tuple[Refusal, ...]


def find_series(
    paths: str | Path | Iterable[str | Path],
    *,
    modality: Modality | None = None,
    tilt: Tilt = "resample",
    widest_gap: float = WIDEST_GAP_MM,
    kept: KeptHeaders | None = None,
) -> Discovery:
    """Find all series in files, folders and archives, at any depth, formats mixed; a DICOM file means the volume it is a slice of.

    A DICOMDIR means the images that it lists. Archives are unpacked until the process ends, and named as folders are:
    `archive.zip/inner/path`. `folder#uid` means that series alone. `modality` overrides what files say; `tilt`, `widest_gap`: see
    `Series`; `kept`: headers from an earlier discovery, which spare reading files that have not changed. Raises
    ScanError when a path does not exist, when a folder holds no such series, or when nothing at all was found.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    reached, refused = _reach(given)
    names = {path: name for path in reached if (name := parse_name(path)) is not None}
    files = _list_files([path for path in reached if path not in names], refused)
    series: list[Series] = []
    headers: list[dicom_headers.Header] = []
    single: dict[Path, str] = {}
    for path, root in files.items():
        if kept is not None and path != root and (header := kept.find(path)) is not None:
            headers.append(header)
            continue
        try:
            with explain_faults("cannot be read", where=path, do="Check the path and its permissions, or omit it"):
                known = _find_format(path)
                if known is DICOM:
                    header = _read_dicom_header(path)
                    if path == root:
                        single[path] = header.series_uid
                    headers.append(header if kept is None else kept.take(header))
                elif known is not None:
                    known.check(path)
                    held = known.list_files(path)
                    series.append(Series(kind=known.name, files=held, source=str(show_place(path)), modality=modality))
                elif path == root:
                    raise ScanError("is not in a format that dagman reads", where=path, do=f"Give {list_titles()}")
        except ScanError as error:
            refused.append(Refusal.from_error(show_path(show_place(path)), error))
    series = _name_files(series, files)
    whole = {path for path in files if path not in single}
    beside = _read_beside(single, names, known={header.path for header in headers})
    if kept is not None:
        beside = [kept.take(header) for header in beside]
    groups = group_headers([*headers, *beside], any_modality=modality is not None)
    if kept is not None:
        groups = kept.reveal(groups)
    for one in _select(name_groups(groups), whole, single, names):
        if one.group.reason:
            # A row a folder, by its first file: who searches for a folder must find it.
            firsts = {path.parent: path for path in reversed(one.group.files)}
            refused.extend(Refusal(source=str(show_place(path)), reason=one.group.reason) for path in firsts.values())
        else:
            series.append(_build_dicom_series(one, modality))
    if not series and not refused:
        shown = ", ".join(str(path) for path in given[:3])
        raise ScanError("holds no scans", where=shown, do=f"Give files or folders with {list_titles()}")
    return Discovery(
        series=tuple(sorted((replace(one, tilt=tilt, widest_gap=widest_gap) for one in series), key=lambda one: one.source)),
        refused=tuple(sorted(refused, key=lambda one: (one.source, one.reason))),
    )


def _read_beside(
    single: Mapping[Path, str], names: Mapping[Path, SeriesName], known: Collection[Path]
) -> list[dicom_headers.Header]:
    """Headers of the files that belong to series given by one file, or by name, and are not known already."""
    wanted: list[Path] = []
    for folder in dict.fromkeys(path.parent for path in single):
        by_uid = list_by_uid(folder)
        uids = {uid for path, uid in single.items() if path.parent == folder}
        wanted += [path for uid in sorted(uids) for path in by_uid.get(uid, ())]
    for name in names.values():
        below = (path for path in _walk_folder(name.folder, set(), []) if os.path.isfile(path))
        wanted += [path for path in below if read_series_uid(path) == name.uid]
    headers = []
    for path in dict.fromkeys(wanted):
        if path not in known:
            with contextlib.suppress(ScanError):
                headers.append(dicom_headers.read_header(path))
    return headers


def _select(
    groups: Sequence[NamedGroup], whole: Collection[Path], single: Mapping[Path, str], names: Mapping[Path, SeriesName]
) -> list[NamedGroup]:
    """The groups that were asked for: those with a file below a given folder, those of a given file, those of a given name.

    A series that was given by a file, or by a name that means it alone, keeps that name. Raises ScanError for a name of nothing.
    """
    chosen: dict[int, NamedGroup] = {}
    for index, one in enumerate(groups):
        if any(path in whole for path in (*one.group.files, *one.group.copies)):
            chosen[index] = one
    for path in single:
        for index, one in enumerate(groups):
            if path in one.group.files or path in one.group.copies:
                chosen.setdefault(index, replace(one, source=str(show_place(path))) if not one.group.reason else one)
    for path, name in names.items():
        meant = [index for index, one in enumerate(groups) if name.names(one)]
        volumes = [index for index in meant if not groups[index].group.reason]
        if not meant:
            folder = show_place(name.folder)
            do = f"Run dagman inspect {folder} for the names of its series"
            raise ScanError(f"there is no series #{path.name.rpartition('#')[2]}", where=folder, do=do)
        for index in volumes or meant:
            one = groups[index]
            if not one.group.reason:
                one = replace(one, source=str(show_place(path)) if len(volumes) == 1 else name_selected(one))
            chosen.setdefault(index, one)
    return [chosen[index] for index in sorted(chosen)]


def _reach(given: Sequence[Path]) -> tuple[list[Path], list[Refusal]]:
    """The given paths as they can be opened, and archives that cannot."""
    reached: list[Path] = []
    refused: list[Refusal] = []
    for path in given:
        if is_archive(path):
            folder = _enter(path, refused)
            reached += [] if folder is None else [folder]
        else:
            reached.append(reach_place(path))
    return reached, refused


def _enter(archive: Path, refused: list[Refusal]) -> Path | None:
    """The folder of an archive; None, with the reason among `refused`, where it cannot be unpacked."""
    try:
        folder, left = enter_archive(archive)
    except (ScanError, OSError) as fault:
        error = fault if isinstance(fault, ScanError) else ScanError("cannot be read", do="Check the path and its permissions")
        refused.append(Refusal.from_error(show_path(show_place(archive)), error))
        return None
    refused += [
        Refusal.from_error(show_path(f"{archive}/{one.member.lstrip('/')}"), ScanError(one.what, do=one.do)) for one in left
    ]
    return folder


def _list_files(given: Sequence[Path], closed: list[Refusal]) -> dict[Path, Path]:
    """Every file below the given paths, in order of its path, with the path it was found under; `closed` takes closed folders."""
    files: dict[Path, Path] = {}
    entered: set[tuple[int, int]] = set()
    for root in given:
        _check_given(root)
        if is_directory_file(root):
            files |= dict.fromkeys(_list_directory(root, closed), root)
            continue
        if not root.is_dir():
            files.setdefault(root, root)
            continue
        for path in _walk_folder(root, entered, closed):
            files.setdefault(path, root)
    return dict(sorted(files.items(), key=lambda item: show_place(item[0]).as_posix()))


def _list_directory(path: Path, refused: list[Refusal]) -> list[Path]:
    """The files of a DICOMDIR; `refused` takes those that are missing, or itself."""
    try:
        images, absent = list_images(path)
    except ScanError as error:
        images, absent = [], [(path, error)]
    refused += [Refusal.from_error(show_path(show_place(place)), error) for place, error in absent]
    return images


def _check_given(root: Path) -> None:
    try:
        root.stat()
    except FileNotFoundError:
        raise ScanError("does not exist", where=show_place(root), do=suggest_path(root, "Check the path")) from None
    except OSError as error:
        raise ScanError(f"cannot be opened ({error.strerror})", where=root, do="Check the path and its permissions") from error


def _walk_folder(root: Path, entered: set[tuple[int, int]], closed: list[Refusal]) -> Iterator[Path]:
    """Files at any depth, in archives too, hidden ones left out; linked folders are followed, and no folder is entered twice."""

    def note_closed(error: OSError) -> None:
        reason = f"cannot be opened ({error.strerror}): check its permissions"
        closed.append(Refusal(source=show_path(error.filename), reason=reason))

    for folder, folders, names in os.walk(root, onerror=note_closed, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if not is_archive(path):
                yield path
            elif show_place(path) != path:
                closed.append(Refusal(source=show_path(show_place(path)), reason="is an archive in an archive: unpack it first"))
            elif (inside := _enter(path, closed)) is not None:
                yield from _walk_folder(inside, entered, closed)


def show_path(path: str | Path) -> str:
    """A path on one line, as UTF-8: what no page or table could hold is written as an escape."""
    return "".join(f"\\x{ord(sign) & 0xFF:02x}" if _cannot_be_shown(sign) else sign for sign in str(path))


def _cannot_be_shown(sign: str) -> bool:
    # Control characters, and the stand-ins that Python gives to bytes of a file's name that are not UTF-8.
    return unicodedata.category(sign) in ("Cc", "Cs")


def _find_format(path: Path) -> Format | None:
    """The format of a file by its name, or by its first bytes where that says nothing; None for what is passed over.

    Raises ScanError for what no reader could open, before one hangs on a pipe or stumbles over a name.
    """
    name, known = path.name.lower(), find_format(path)
    unread = known is None and name.endswith((*_ARCHIVES, *_UNREAD))
    # Not path.is_file(): below a folder that may be listed and not entered it raises.
    if known is None and not unread:
        if path.name == "DICOMDIR" or not os.path.isfile(path):
            return None
        # Unreadable, it may be a slice without suffix: passed over, a series would end early in silence.
        with contextlib.suppress(OSError):
            if not dicom_headers.resembles_dicom(path):
                return None
        known = DICOM
    if any(_cannot_be_shown(sign) for sign in str(path)):
        raise ScanError(
            "its path contains characters that are not valid UTF-8, or line breaks", where=show_path(path), do="Rename it"
        )
    if not os.path.isfile(path):
        raise ScanError("cannot be read", where=path, do="Check the path and its permissions")
    if unread:
        archive: tuple[str, str | None] = ("is an archive", "Unpack it first")
        what, do = next((text for suffix, text in _UNREAD.items() if name.endswith(suffix)), archive)
        raise ScanError(what, where=path, do=do or f"Convert it to {list_titles()}")
    return known


def _read_dicom_header(path: Path) -> dicom_headers.Header:
    try:
        known = dicom_headers.resembles_dicom(path)
    except OSError as error:
        raise ScanError("cannot be read", where=path, do="Check its permissions") from error
    if path.stat().st_size == 0:
        raise ScanError("is empty", where=path, do="Copy or export the series again")
    if not known:
        raise ScanError("is not a DICOM file, despite its name", where=path, do="Copy or export it again, or exclude it")
    return dicom_headers.read_header(path)


def _name_files(series: Sequence[Series], files: dict[Path, Path]) -> list[Series]:
    """Give every single-file series its patient by the rule in `pseudonyms`."""
    relative = []
    for one in series:
        path, root = one.files[0], files[one.files[0]]
        below = show_place(root)
        # As if an archive were unpacked in its place.
        inside = show_place(path) if is_archive(below) else show_place(path, suffix=False)
        relative.append(inside.relative_to(below) if path != root else Path(path.name))
    names = name_patients(relative)
    return [
        Series(kind=one.kind, files=one.files, source=one.source, modality=one.modality, patient=name, patient_from="assumed")
        for one, name in zip(series, names, strict=True)
    ]


def _build_dicom_series(one: NamedGroup, modality: Modality | None) -> Series:
    group = one.group
    stated: Modality = group.modality if group.modality in ("CT", "MR") else "other"  # type: ignore[assignment]
    return Series(
        kind=DICOM.name,
        files=group.files,
        source=one.source,
        modality=modality or stated,
        patient=group.patient,
        patient_from="file" if group.names_patient else "assumed",
        uid=group.uid or None,
        kernel=group.kernel,
        notes=group.notes,
    )
