"""Names for patients that are not their names.

DICOM: `P-` and 8 hex digits of a keyed hash of the PatientID (of the StudyInstanceUID where that is empty), so that all
series of one patient fall together. The key is public: who has a list of PatientIDs can find them again. This keeps
identities out of stores and pages; it is no anonymisation.

Other formats name no patient. There the rule is: the patient is the file's name without its suffix. Where such names repeat
(`a/ct.nii.gz`, `b/ct.nii.gz`) it is the folder, if there are at least as many folders as names, else the path below the
folder given. A table's `patient` column goes before all of this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_KEY = b"dagman patient pseudonym 1"
_DOUBLE_SUFFIXES = (".gz", ".bz2", ".zst")


def name_patient(patient_id: str) -> str:
    """The pseudonym of a DICOM PatientID, such as "P-1f2e3d4c"; surrounding blanks do not count."""
    digest = hashlib.blake2b(patient_id.strip().encode(), key=_KEY, digest_size=4)
    return f"P-{digest.hexdigest()}"


def name_file(path: Path) -> str:
    """A file's name without its suffixes: "a/case_1.nii.gz" -> "case_1"."""
    name = path.name
    if path.suffix.lower() in _DOUBLE_SUFFIXES:
        name = Path(name).stem
    return Path(name).stem


def name_patients(paths: Sequence[Path]) -> list[str]:
    """One patient a file, by the rule above; `paths` are relative to the folder given."""
    stems = [name_file(path) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    folders = [path.parent.as_posix() for path in paths]
    if len(set(folders)) >= len(set(stems)) and "." not in folders:
        return folders
    return [(path.parent / stem).as_posix() for path, stem in zip(paths, stems, strict=True)]
