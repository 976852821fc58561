"""What lies below the given folders: every series that may be a scan, and every refusal with its reason.

Headers alone are read here. The result depends on the files, not on the order in which a file system lists them.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dagman.errors import DagmanError, ScanError
from dagman.scans import itk, nifti
from dagman.scans.dicom import DicomGroup, group_headers
from dagman.scans.dicom import headers as dicom_headers
from dagman.scans.pseudonyms import name_patients
from dagman.scans.scan import Modality

Kind = Literal["nifti", "itk", "dicom"]

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_UNREAD = (".hdr", ".img", ".img.gz", ".hdr.gz", ".mgz", ".mgh", ".mnc", ".gipl", ".nii.bz2", ".nii.zst")
"""Files that may hold scans all the same: they are named as refused, not passed over."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One volume that may be a scan; `source` is a path that `read_scan` takes, unique among all series found.

    `modality` is None where the file does not say it; `patient` is a pseudonym.
    """

    kind: Kind
    files: tuple[Path, ...]
    source: str
    modality: Modality | None = None
    patient: str | None = field(default=None, repr=False)
    uid: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Something that is left out: where it lies, and why, with what to do."""

    source: str
    reason: str

    @classmethod
    def from_error(cls, source: str, error: DagmanError) -> Refusal:
        """The refusal of `source` for an error met while reading it; a file named in the error stays named."""
        advice = f": {error.do[0].lower()}{error.do[1:]}" if error.do else ""
        place = f"{Path(error.where).name}: " if error.where and error.where != source else ""
        return cls(source=source, reason=f"{place}{error.what}{advice}")


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """Everything found, both lists ordered by source."""

    series: tuple[Series, ...]
    refused: tuple[Refusal, ...]


def find_series(paths: str | Path | Iterable[str | Path], *, modality: Modality | None = None) -> Discovery:
    """Find all series in files and folders, at any depth, formats mixed.

    `modality` overrides what files say. Raises ScanError when a path does not exist or when nothing at all was found.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    files, refused = _list_files(given)
    series: list[Series] = []
    headers: list[dicom_headers.Header] = []
    for path, root in files.items():
        try:
            kind = _find_kind(path)
            if kind is not None:
                _check_file(path, kind)
            if kind == "nifti":
                nifti.check_nifti(path)
            elif kind == "itk":
                itk.check_itk(path)
            elif kind == "dicom":
                headers.append(_read_dicom_header(path))
            elif path == root:
                raise ScanError("is of no format that dagman reads", where=path, do="Give NIfTI, NRRD, MetaImage or DICOM")
        except ScanError as error:
            refused.append(Refusal.from_error(show_path(path), error))
            continue
        if kind in ("nifti", "itk"):
            series.append(Series(kind=kind, files=(path,), source=str(path), modality=modality))
    series = _name_files(series, files)
    for source, group in _name_groups(group_headers(headers, any_modality=modality is not None)):
        if group.reason:
            # A row a folder, by its first file: who looks for a folder must find it.
            firsts = {path.parent: path for path in reversed(group.files)}
            refused.extend(Refusal(source=str(path), reason=group.reason) for path in firsts.values())
        else:
            series.append(_build_dicom_series(source, group, modality))
    if not series and not refused:
        names = ", ".join(str(path) for path in given[:3])
        raise ScanError("holds no scans", where=names, do="Give files or folders with NIfTI, NRRD, MetaImage or DICOM")
    return Discovery(
        series=tuple(sorted(series, key=lambda one: one.source)),
        refused=tuple(sorted(refused, key=lambda one: (one.source, one.reason))),
    )


def _list_files(given: Sequence[Path]) -> tuple[dict[Path, Path], list[Refusal]]:
    """Every file below the given paths, in order of its path, with the path it was found under; and closed folders."""
    files: dict[Path, Path] = {}
    closed: list[Refusal] = []
    entered: set[tuple[int, int]] = set()
    for root in given:
        _check_given(root)
        if not root.is_dir():
            files.setdefault(root, root)
            continue
        for path in _walk_folder(root, entered, closed):
            files.setdefault(path, root)
    return dict(sorted(files.items(), key=lambda item: item[0].as_posix())), closed


def _check_given(root: Path) -> None:
    try:
        root.stat()
    except FileNotFoundError:
        raise ScanError("does not exist", where=root, do="Check the path") from None
    except OSError as error:
        raise ScanError(f"cannot be opened ({error.strerror})", where=root, do="Check the path and its permissions") from error


def _walk_folder(root: Path, entered: set[tuple[int, int]], closed: list[Refusal]) -> Iterator[Path]:
    """Files at any depth, hidden ones left out; linked folders are followed, and no folder is entered twice."""

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
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def show_path(path: str | Path) -> str:
    """A path on one line, as UTF-8: what no page or table could hold is written as an escape."""
    return "".join(f"\\x{ord(sign) & 0xFF:02x}" if _cannot_be_shown(sign) else sign for sign in str(path))


def _cannot_be_shown(sign: str) -> bool:
    # Control characters, and the stand-ins that Python gives to bytes of a file's name that are not UTF-8.
    return unicodedata.category(sign) in ("Cc", "Cs")


def _find_kind(path: Path) -> Kind | Literal["unread"] | None:
    name = path.name.lower()
    if name.endswith(nifti.SUFFIXES):
        return "nifti"
    if name.endswith(itk.SUFFIXES):
        return "itk"
    if name.endswith(dicom_headers.SUFFIXES):
        return "dicom"
    if name.endswith(_ARCHIVES + _UNREAD):
        return "unread"
    # Not path.is_file(): below a folder that may be listed and not entered it raises.
    if path.name == "DICOMDIR" or not os.path.isfile(path):
        return None
    try:
        return "dicom" if dicom_headers.looks_like_dicom(path) else None
    except OSError:
        # It may be a slice without suffix: passed over, a series would end early in silence.
        return "dicom"


def _check_file(path: Path, kind: str) -> None:
    """Refuse what no reader could open, before one hangs on a pipe or stumbles over a name."""
    if any(_cannot_be_shown(sign) for sign in str(path)):
        raise ScanError("its path holds signs that are not UTF-8 text, or line breaks", where=show_path(path), do="Rename it")
    if not os.path.isfile(path):
        raise ScanError("cannot be read", where=path, do="Check the path and its permissions")
    if kind == "unread":
        archive = path.name.lower().endswith(_ARCHIVES)
        what = "is an archive" if archive else "is of a format that dagman does not read"
        raise ScanError(what, where=path, do="Unpack it first" if archive else "Convert it to NIfTI, NRRD or MetaImage")


def _read_dicom_header(path: Path) -> dicom_headers.Header:
    try:
        known = dicom_headers.looks_like_dicom(path)
    except OSError as error:
        raise ScanError("cannot be read", where=path, do="Check its permissions") from error
    if path.stat().st_size == 0:
        raise ScanError("is empty", where=path, do="Copy or export the series again")
    if not known:
        raise ScanError("is no DICOM file, although its name says so", where=path, do="Copy or export it again, or leave it out")
    return dicom_headers.read_header(path)


def _name_files(series: Sequence[Series], files: dict[Path, Path]) -> list[Series]:
    """Give every single-file series its patient by the rule in `pseudonyms`."""
    relative = []
    for one in series:
        path, root = one.files[0], files[one.files[0]]
        relative.append(path.relative_to(root) if path != root else Path(path.name))
    names = name_patients(relative)
    return [
        Series(kind=one.kind, files=one.files, source=one.source, modality=one.modality, patient=name)
        for one, name in zip(series, names, strict=True)
    ]


def _name_groups(groups: Sequence[DicomGroup]) -> list[tuple[str, DicomGroup]]:
    """Each group's source: its folder where no other volume lies in or below it, else its first file."""
    folders = [Path(os.path.commonpath([path.parent for path in group.files])) for group in groups]
    volumes = (folder for folder, group in zip(folders, groups, strict=True) if not group.reason)
    # Counted upwards, once a volume: comparing every two folders took over an hour for ten thousand series.
    held = Counter(place for folder in volumes for place in (folder, *folder.parents))
    named = []
    for folder, group in zip(folders, groups, strict=True):
        several = len(group.files) > 1 and not group.reason
        named.append((str(folder if held[folder] == 1 and several else group.files[0]), group))
    return named


def _build_dicom_series(source: str, group: DicomGroup, modality: Modality | None) -> Series:
    stated: Modality = group.modality if group.modality in ("CT", "MR") else "other"  # type: ignore[assignment]
    return Series(
        kind="dicom",
        files=group.files,
        source=source,
        modality=modality or stated,
        patient=group.patient,
        uid=group.uid or None,
    )
