"""Pseudonyms of patients.

DICOM: `P-` and 16 hex digits of the HMAC-SHA256 of the PatientID (or of the StudyInstanceUID, if that is empty) with the user's key
(`records.key`), so that all series of a patient have the same pseudonym. With the key one can compute the pseudonym of a PatientID.

Other formats do not name a patient: the patient is the file name without its suffix. If such names repeat (`a/ct.nii.gz`,
`b/ct.nii.gz`), it is the folder, provided that there are at least as many folders as names, and otherwise the path below the given
folder. This name is then hashed with the key, too. A table's `patient` column takes precedence over all of this.

Without a key, as in versions before there were keys, the pseudonym is 8 hex digits of a hash that anyone can compute, and file
names are used as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dagman.records.key import find_key

_PUBLIC = b"dagman patient pseudonym 1"
_DOUBLE_SUFFIXES = (".gz", ".bz2", ".zst")


def name_patient(patient_id: str) -> str:
    """Return the pseudonym of a PatientID, such as "P-1f2e3d4c5b6a7988"; surrounding whitespace is ignored."""
    if (key := find_key()) is not None:
        return f"P-{key.name(patient_id.strip())}"
    digest = hashlib.blake2b(patient_id.strip().encode("utf-8", "surrogateescape"), key=_PUBLIC, digest_size=4)
    return f"P-{digest.hexdigest()}"


def name_file(path: Path) -> str:
    """Return a file name without its suffixes: "a/case_1.nii.gz" -> "case_1"."""
    name = path.name
    if path.suffix.lower() in _DOUBLE_SUFFIXES:
        name = Path(name).stem
    return Path(name).stem


def name_patients(paths: Sequence[Path]) -> list[str]:
    """Return the patient of each file by the rule above; `paths` are relative to the given folder."""
    names = _distinguish(paths)
    return names if find_key() is None else [name_patient(name) for name in names]


def _distinguish(paths: Sequence[Path]) -> list[str]:
    stems = [name_file(path) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    folders = [path.parent.as_posix() for path in paths]
    if len(set(folders)) >= len(set(stems)) and "." not in folders:
        return folders
    return [(path.parent / stem).as_posix() for path, stem in zip(paths, stems, strict=True)]
