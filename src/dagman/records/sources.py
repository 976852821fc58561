"""Expands sources given on the command line: paths, patterns such as 'scans/*.nii.gz', and text files that list paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dagman.errors import SettingsError
from dagman.records.counts import count_noun, list_some
from dagman.records.key import find_key
from dagman.records.names import suggest_path

_FILE_NAMES_KEPT = "file names are kept, as items are named by their files; a table with a column 'item', or a store, avoids this"
_NO_KEY = "; patients are file names or unkeyed hashes of PatientIDs, as there is no key yet (dagman prepare creates one)"


def describe_names() -> str:
    """Return the note that a command prints once about the names it stores: file names, and unkeyed patient names."""
    return _FILE_NAMES_KEPT + ("" if find_key() is not None else _NO_KEY)


def name_relative(names: Sequence[str], sources: Sequence[Path]) -> list[str]:
    """Return the names of scans relative to the given folder, or to the common parent if there are several sources.

    >>> name_relative(["/data/cohort/a/ct.nii.gz"], [Path("/data/cohort")])
    ['a/ct.nii.gz']
    """
    parents = [os.path.abspath(source if len(sources) == 1 and source.is_dir() else source.parent) for source in sources]
    root = os.path.commonpath(parents)
    relative = [os.path.relpath(os.path.abspath(name), root) for name in names]
    # A folder that is itself a series, or holds several of them, goes by its own name.
    return [Path(name).name if text == "." or text.startswith("..") else text for name, text in zip(names, relative, strict=True)]


def expand_sources(sources: Sequence[Path]) -> list[Path]:
    """Expand patterns and lists into paths, without duplicates, in order.

    A list is a .txt file, or any file given as @FILE, with one path per line, relative to the list's folder; lines that begin
    with # are comments. Some of its paths may not exist: commands reject these one by one.

    Raises:
        SettingsError: if a path does not exist, a pattern matches nothing, or a list is missing, unreadable, empty, or has no path
            that exists.
    """
    paths: list[Path] = []
    for source in sources:
        is_list = str(source).startswith("@") and not source.exists()
        if is_list:
            source = Path(str(source)[1:])
            if not source.is_file():
                raise SettingsError("is not a file", where=source, do="Give a file with one path per line after @")
        if is_list or (source.suffix.lower() == ".txt" and source.is_file()):
            try:
                lines = source.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"cannot be read as a list of paths ({error})", where=source) from None
            listed = [source.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not listed:
                raise SettingsError("is an empty list", where=source, do="Write one path per line")
            if all(map(_is_absent, listed)):
                what = f"none of its {count_noun(len(listed), 'path')} exists ({list_some([str(path) for path in listed], 3)})"
                raise SettingsError(what, where=source, do="Write paths relative to the list, or absolute ones")
            paths += listed
        elif glob.has_magic(str(source)) and not source.exists():
            matched = sorted(glob.glob(str(source), recursive=True))
            if not matched:
                raise SettingsError("matches no file", where=source, do="Correct the pattern; ** matches folders at any depth")
            paths += map(Path, matched)
        elif _is_absent(source):
            raise SettingsError("does not exist", where=source, do=suggest_path(source, "Check the path"))
        else:
            paths.append(source)
    return list(dict.fromkeys(paths))


def _is_absent(path: Path) -> bool:
    """Whether nothing lies at a path; what is named inside an archive, or as `folder#uid`, is found out when it is opened."""
    return not os.path.lexists(path) and "#" not in str(path) and not any(parent.is_file() for parent in path.parents)
