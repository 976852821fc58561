"""Finds all series in the given files and folders, and lists everything refused with its reason.

Only headers are read. The result does not depend on the order in which the file system lists files.
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
from dagman.scans.archives import enter_archive, find_fault, is_archive, reach_place, show_place
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
"""Widest gap between slices that is interpolated: a nodule of 6 mm cannot be hidden in it. [ours]"""

_ARCHIVES = (".7z", ".rar", ".tar.zst")
"""Archives that dagman cannot unpack; for the others see `archives`."""

_PAIR = ("is Analyze 7.5, or a NIfTI pair of .hdr and .img", "Convert it to .nii.gz; Analyze does not state which side is left")
_FREESURFER = ("is in FreeSurfer's format", "Convert it: mri_convert SCAN.mgz SCAN.nii.gz")
_PACKED = ("is compressed in a format that dagman does not read", "Decompress it, or compress it as .nii.gz")
_UNSUPPORTED: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys((".hdr", ".img", ".img.gz", ".hdr.gz"), _PAIR),
    **dict.fromkeys((".mgz", ".mgh"), _FREESURFER),
    **dict.fromkeys((".nii.bz2", ".nii.zst"), _PACKED),
    ".mnc": ("is MINC", "Convert it: mnc2nii SCAN.mnc SCAN.nii"),
    ".gipl": ("is in a format that dagman does not read", None),
}
"""Files that may be scans but cannot be read: what they are, and what to do. They are refused by name instead of ignored."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One volume that may be a scan."""

    kind: str
    "Name of its format (`formats.FORMATS`)."
    files: tuple[Path, ...]
    source: str
    "The name by which every command accepts it (see `dicom.naming`), unique among all series found."
    modality: Modality | None = None
    "None if the files do not state it."
    patient: str | None = field(default=None, repr=False)
    "A pseudonym."
    patient_from: PatientFrom = "file"
    "Who names the patient: the file, the user, or nobody, so that the scan is treated as a separate patient (assumed)."
    uid: str | None = field(default=None, repr=False)
    kernel: str = ""
    "Reconstruction kernel named in the files, or empty."
    notes: tuple[str, ...] = ()
    "Decisions made during discovery."
    tilt: Tilt = "resample"
    "Whether slices of a tilted gantry are resampled or refused."
    widest_gap: float = WIDEST_GAP_MM
    "Distance between slices (mm) up to which uneven slices, or missing ones, are interpolated."

    @property
    def patient_assumed(self) -> bool:
        """Whether the patient is unknown, so that the scan is treated as a separate patient."""
        return self.patient_from == "assumed"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A source that was refused, and the reason, with what to do about it."""

    source: str
    reason: str

    @classmethod
    def from_error(cls, source: str, error: DagmanError) -> Refusal:
        """Create the refusal of `source` from an error; if the error names a different file, the reason names it too."""
        remedy = f": {error.do[0].lower()}{error.do[1:]}" if error.do else ""
        file = f"{Path(error.where).name}: " if error.where and str(show_place(error.where)) != source else ""
        return cls(source=source, reason=f"{file}{error.what}{remedy}")


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """All series and refusals, both sorted by source."""

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
    """Find all series of any format in files, folders and archives, at any depth.

    A DICOM file stands for the volume that it is a slice of, a DICOMDIR for the images that it lists, and `folder#uid` for a single
    series. Archives are unpacked until the process ends, and named like folders: `archive.zip/inner/path`.

    Args:
        paths: one or several files, folders, archives or names of series.
        modality: overrides the modality stated in the files.
        tilt, widest_gap: see `Series`.
        kept: headers from an earlier discovery, so that unchanged files need not be read again.

    Raises:
        ScanError: if no path exists (one among others is only rejected), a named series is not in its folder, or nothing was found.
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
    siblings = _read_siblings(single, names, known={header.path for header in headers})
    if kept is not None:
        siblings = [kept.take(header) for header in siblings]
    groups = group_headers([*headers, *siblings], any_modality=modality is not None)
    if kept is not None:
        groups = kept.reveal(groups)
    for named in _select(name_groups(groups), whole, single, names):
        if named.group.reason:
            # One row per folder, with its first file, so that a user who searches the list for a folder finds it.
            firsts = {path.parent: path for path in reversed(named.group.files)}
            refused.extend(Refusal(source=str(show_place(path)), reason=named.group.reason) for path in firsts.values())
        else:
            series.append(_build_dicom_series(named, modality))
    if not series and not refused:
        shown = ", ".join(str(path) for path in given[:3])
        raise ScanError("contains no scans", where=shown, do=f"Give files or folders with {list_titles()}")
    return Discovery(
        series=tuple(sorted((replace(one, tilt=tilt, widest_gap=widest_gap) for one in series), key=lambda one: one.source)),
        refused=tuple(sorted(refused, key=lambda refusal: (refusal.source, refusal.reason))),
    )


def _read_siblings(
    single: Mapping[Path, str], names: Mapping[Path, SeriesName], known: Collection[Path]
) -> list[dicom_headers.Header]:
    """Read the headers, except known ones, of all files of the series that were given by one of their files, or by name."""
    wanted: list[Path] = []
    for folder in dict.fromkeys(path.parent for path in single):
        by_uid = list_by_uid(folder)
        uids = {uid for path, uid in single.items() if path.parent == folder}
        wanted += [path for uid in sorted(uids) for path in by_uid.get(uid, ())]
    for name in names.values():
        candidates = (path for path in _walk_folder(name.folder, set(), []) if os.path.isfile(path))
        wanted += [path for path in candidates if read_series_uid(path) == name.uid]
    headers = []
    for path in dict.fromkeys(wanted):
        if path not in known:
            with contextlib.suppress(ScanError):
                headers.append(dicom_headers.read_header(path))
    return headers


def _select(
    groups: Sequence[NamedGroup], whole: Collection[Path], single: Mapping[Path, str], names: Mapping[Path, SeriesName]
) -> list[NamedGroup]:
    """Select the requested groups: with a file in `whole` (found in a given folder), of a `single` given file, or of a given name.

    A series given by a file, or by a name of only this series, keeps that name. Raises ScanError if a name matches no group.
    """
    chosen: dict[int, NamedGroup] = {}
    for index, named in enumerate(groups):
        if any(path in whole for path in (*named.group.files, *named.group.copies)):
            chosen[index] = named
    for path in single:
        for index, named in enumerate(groups):
            if path in named.group.files or path in named.group.copies:
                chosen.setdefault(index, replace(named, source=str(show_place(path))) if not named.group.reason else named)
    for path, name in names.items():
        matching = [index for index, named in enumerate(groups) if name.names(named)]
        volumes = [index for index in matching if not groups[index].group.reason]
        if not matching:
            folder = show_place(name.folder)
            do = f"Run dagman inspect {folder} for the names of its series"
            raise ScanError(f"there is no series #{path.name.rpartition('#')[2]}", where=folder, do=do)
        for index in volumes or matching:
            named = groups[index]
            if not named.group.reason:
                named = replace(named, source=str(show_place(path)) if len(volumes) == 1 else name_selected(named))
            chosen.setdefault(index, named)
    return [chosen[index] for index in sorted(chosen)]


def _reach(given: Sequence[Path]) -> tuple[list[Path], list[Refusal]]:
    """Resolve the given paths to paths that can be opened, and refuse archives that cannot be."""
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
    """Unpack an archive and return its folder; if that fails, add the reason to `refused` and return None."""
    try:
        with explain_faults("cannot be read", where=archive, do="Check the path and its permissions"):
            folder, rejected = enter_archive(archive)
    except ScanError as error:
        refused.append(Refusal.from_error(show_path(show_place(archive)), error))
        return None
    refused += [
        Refusal.from_error(show_path(f"{archive}/{member.member.lstrip('/')}"), ScanError(member.what, do=member.do))
        for member in rejected
    ]
    return folder


def _list_files(given: Sequence[Path], closed: list[Refusal]) -> dict[Path, Path]:
    """List every file in the given paths, sorted, with the path it was found in; `closed` takes what cannot be opened."""
    files: dict[Path, Path] = {}
    entered: set[tuple[int, int]] = set()
    faults = {root: fault for root in given if (fault := find_fault(root)) is not None}
    if faults and len(faults) == len(set(given)):
        raise next(iter(faults.values()))
    closed += [Refusal.from_error(show_path(show_place(root)), fault) for root, fault in faults.items()]
    for root in (path for path in given if path not in faults):
        if is_directory_file(root):
            files |= dict.fromkeys(_list_directory(root, closed), root)
            continue
        for path in _walk_folder(root, entered, closed) if root.is_dir() else (root,):
            files.setdefault(path, root)
    return dict(sorted(files.items(), key=lambda item: show_place(item[0]).as_posix()))


def _list_directory(path: Path, refused: list[Refusal]) -> list[Path]:
    """List the files of a DICOMDIR; missing files, or the DICOMDIR itself if it is damaged, are added to `refused`."""
    try:
        images, absent = list_images(path)
    except ScanError as error:
        images, absent = [], [(path, error)]
    refused += [Refusal.from_error(show_path(show_place(file)), error) for file, error in absent]
    return images


def _walk_folder(root: Path, entered: set[tuple[int, int]], closed: list[Refusal]) -> Iterator[Path]:
    """Yield the files at any depth, including those in archives, except hidden ones; follow links, but enter no folder twice."""

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
                closed.append(
                    Refusal(source=show_path(show_place(path)), reason="is an archive inside an archive: unpack it first")
                )
            elif (inside := _enter(path, closed)) is not None:
                yield from _walk_folder(inside, entered, closed)


def show_path(path: str | Path) -> str:
    """Return a path as a single line of valid UTF-8; characters that a page or table cannot hold are escaped."""
    return "".join(f"\\x{ord(sign) & 0xFF:02x}" if _is_unprintable(sign) else sign for sign in str(path))


def _is_unprintable(sign: str) -> bool:
    # Control characters, and the surrogates by which Python represents bytes of a file name that are not UTF-8.
    return unicodedata.category(sign) in ("Cc", "Cs")


def _find_format(path: Path) -> Format | None:
    """Find the format of a file by its name, or else by its first bytes; None if the file is to be ignored.

    Raises ScanError for files that no reader can open, before a reader hangs on a pipe or fails on a file name.
    """
    name, known = path.name.lower(), find_format(path)
    is_unsupported = known is None and name.endswith((*_ARCHIVES, *_UNSUPPORTED))
    # os.path.isfile, since path.is_file() raises in a folder that may be listed but not entered.
    if known is None and not is_unsupported:
        if path.name == "DICOMDIR" or not os.path.isfile(path):
            return None
        # An unreadable file may be a slice without a suffix. If it were ignored, its series would silently lack a slice.
        with contextlib.suppress(OSError):
            if not dicom_headers.resembles_dicom(path):
                return None
        known = DICOM
    if any(_is_unprintable(sign) for sign in str(path)):
        what = "its path contains characters that are not valid UTF-8, or line breaks"
        raise ScanError(what, where=show_path(path), do="Rename it")
    if not os.path.isfile(path):
        raise ScanError("cannot be read", where=path, do="Check the path and its permissions")
    if is_unsupported:
        archive: tuple[str, str | None] = ("is an archive", "Unpack it first")
        what, do = next((text for suffix, text in _UNSUPPORTED.items() if name.endswith(suffix)), archive)
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
    """Assign a patient to every series of a single file, by the rule in `pseudonyms`."""
    relative = []
    for one in series:
        path, root = one.files[0], files[one.files[0]]
        shown_root = show_place(root)
        # Archives are named as if they were unpacked in their place.
        shown = show_place(path) if is_archive(shown_root) else show_place(path, suffix=False)
        relative.append(shown.relative_to(shown_root) if path != root else Path(path.name))
    pairs = zip(series, name_patients(relative), strict=True)
    return [replace(one, patient=name, patient_from="assumed") for one, name in pairs]


def _build_dicom_series(named: NamedGroup, modality: Modality | None) -> Series:
    group = named.group
    stated: Modality = group.modality if group.modality in ("CT", "MR") else "other"  # type: ignore[assignment]
    return Series(
        kind=DICOM.name,
        files=group.files,
        source=named.source,
        modality=modality or stated,
        patient=group.patient,
        patient_from="file" if group.names_patient else "assumed",
        uid=group.uid or None,
        kernel=group.kernel,
        notes=group.notes,
    )
