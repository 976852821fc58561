"""Sources as one names them on the command line: paths, patterns such as 'scans/*.nii.gz', and lists of paths in a text file."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from dagman.errors import SettingsError


def expand_sources(sources: Sequence[Path]) -> list[Path]:
    """The paths meant, each once, in order: patterns are filled in, and a .txt file holds one path a line, relative to itself.

    Raises SettingsError for a pattern that nothing matches, or a list without a path.
    """
    found: list[Path] = []
    for source in sources:
        if source.suffix.lower() == ".txt" and source.is_file():
            try:
                lines = source.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"cannot be read as a list of paths ({error})", where=source) from None
            listed = [source.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not listed:
                raise SettingsError("is an empty list", where=source, do="Write one path a line")
            found += listed
        elif glob.has_magic(str(source)) and not source.exists():
            matched = sorted(glob.glob(str(source), recursive=True))
            if not matched:
                raise SettingsError("matches no file", where=source, do="Correct the pattern; ** reaches folders at any depth")
            found += map(Path, matched)
        else:
            found.append(source)
    return list(dict.fromkeys(found))
