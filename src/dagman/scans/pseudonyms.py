"""Names for patients that are not their names.

DICOM: `P-` and 16 hex digits of HMAC-SHA256 of the PatientID (of the StudyInstanceUID where that is empty), under the user's key
(`records.key`), so that all series of one patient fall together. Who has the key can go from a PatientID to its pseudonym.

Other formats name no patient. There the rule is: the patient is the file's name without its suffix. Where such names repeat
(`a/ct.nii.gz`, `b/ct.nii.gz`) it is the folder, if there are at least as many folders as names, else the path below the
folder given. That name goes through the key too. A table's `patient` column goes before all of this.

Without a key, as before there were keys: 8 hex digits of a hash that anyone can make, and the names of files as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dagman.records.key import find_key

_PUBLIC = b"dagman patient pseudonym 1"
_DOUBLE_SUFFIXES = (".gz", ".bz2", ".zst")


def name_patient(patient_id: str) -> str:
    """The pseudonym of a PatientID, such as "P-1f2e3d4c5b6a7988"; surrounding blanks do not count."""
    if (key := find_key()) is not None:
        return f"P-{key.name(patient_id.strip())}"
    digest = hashlib.blake2b(patient_id.strip().encode("utf-8", "surrogateescape"), key=_PUBLIC, digest_size=4)
    return f"P-{digest.hexdigest()}"


def name_file(path: Path) -> str:
    """A file's name without its suffixes: "a/case_1.nii.gz" -> "case_1"."""
    name = path.name
    if path.suffix.lower() in _DOUBLE_SUFFIXES:
        name = Path(name).stem
    return Path(name).stem


def name_patients(paths: Sequence[Path]) -> list[str]:
    """One patient a file, by the rule above; `paths` are relative to the folder given."""
    named = _distinguish(paths)
    return named if find_key() is None else [name_patient(name) for name in named]


def _distinguish(paths: Sequence[Path]) -> list[str]:
    stems = [name_file(path) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    folders = [path.parent.as_posix() for path in paths]
    if len(set(folders)) >= len(set(stems)) and "." not in folders:
        return folders
    return [(path.parent / stem).as_posix() for path, stem in zip(paths, stems, strict=True)]
