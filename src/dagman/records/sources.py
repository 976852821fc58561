"""Sources as one names them on the command line: paths, patterns such as 'scans/*.nii.gz', and lists of paths in a text file."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dagman.errors import SettingsError
from dagman.records.key import find_key

_FILE_NAMES_KEPT = "file names are kept, as items are named by their files; a table with a column 'item', or a store, avoids this"
_NO_KEY = "; patients are file names or unkeyed hashes of PatientIDs, as there is no key yet (dagman prepare creates one)"


def describe_names() -> str:
    """What a command reports of the names of found scans, once: their files', and whether a key hides those of patients."""
    return _FILE_NAMES_KEPT + ("" if find_key() is not None else _NO_KEY)


def name_relative(names: Sequence[str], sources: Sequence[Path]) -> list[str]:
    """Names of found scans relative to the folder given, or to the folder that holds all that was given.

    >>> name_relative(["/data/cohort/a/ct.nii.gz"], [Path("/data/cohort")])
    ['a/ct.nii.gz']
    """
    parents = [os.path.abspath(source if len(sources) == 1 and source.is_dir() else source.parent) for source in sources]
    root = os.path.commonpath(parents)
    relative = [os.path.relpath(os.path.abspath(name), root) for name in names]
    # A folder that is one series, or holds several, stands for itself.
    return [Path(name).name if text == "." or text.startswith("..") else text for name, text in zip(names, relative, strict=True)]


def expand_sources(sources: Sequence[Path]) -> list[Path]:
    """The paths meant, each once, in order: patterns are filled in, and a list holds one path a line, relative to itself.

    A list is a .txt file, or any file written as @LIST. Raises SettingsError for a pattern that nothing matches, a list that is
    absent, or one without a path.
    """
    found: list[Path] = []
    for source in sources:
        listed_in = str(source).startswith("@") and not source.exists()
        if listed_in:
            source = Path(str(source)[1:])
            if not source.is_file():
                raise SettingsError("is not a file", where=source, do="Give a file with one path per line after @")
        if listed_in or (source.suffix.lower() == ".txt" and source.is_file()):
            try:
                lines = source.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"cannot be read as a list of paths ({error})", where=source) from None
            listed = [source.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not listed:
                raise SettingsError("is an empty list", where=source, do="Write one path per line")
            found += listed
        elif glob.has_magic(str(source)) and not source.exists():
            matched = sorted(glob.glob(str(source), recursive=True))
            if not matched:
                raise SettingsError("matches no file", where=source, do="Correct the pattern; ** matches folders at any depth")
            found += map(Path, matched)
        else:
            found.append(source)
    return list(dict.fromkeys(found))
