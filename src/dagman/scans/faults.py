"""The one boundary between other libraries' exceptions and ours: whatever is raised while a file is read is that file's reason.

pydicom, nibabel, numpy and the decoders raise many kinds on damaged bytes; none of them may end the work on other files.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from dagman.errors import DagmanError, ScanError

_SOURCE = Path(__file__).parents[1]
OWN_FAULT = "a bug in dagman, please report it"
"""Stands in the reason where the exception comes from dagman's own lines, so that no test takes it for a damaged file."""
_LONGEST = 100
_ABOUT_CODE = re.compile(
    r"'\w+' object|\w\(|__|NoneType|\bb['\"]|\bobject\b|\bargument|\bdtype|literal for|could not convert|unpack|subscript"
    r"|broadcast|reshape"
)
"""Words of Python and numpy about a line of code; they explain no file to its user."""


@contextlib.contextmanager
def explain_faults(what: str, *, where: object, do: str) -> Iterator[None]:
    """Raise ScanError for anything but our own errors: `what` is wrong with `where`, and `do` mends it.

    An exception raised by a line of dagman itself, not of a library that it calls, is named as a fault of dagman.
    """
    try:
        yield
    except DagmanError as error:
        if error.where is not None or not isinstance(error, ScanError):
            raise
        raise ScanError(error.what, where=where, do=error.do) from error
    except (FileNotFoundError, PermissionError) as error:
        raise ScanError("cannot be read", where=where, do="Check the path and its permissions") from error
    except MemoryError as error:
        raise ScanError(
            "does not fit in memory",
            where=where,
            do="Check the size in its header, or use fewer processes (--workers 1)",
        ) from error
    except Exception as error:
        raise ScanError(f"{what}{_describe(error)}", where=where, do=do) from error


def describe_own_fault(error: Exception) -> str:
    """A fault of dagman, of what kind and at which of its lines: for what fails once a file was read, whatever library raised it.

    The library's words are about its own code, and may quote what a header holds; they are left out.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_SOURCE)]
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{OWN_FAULT}: {type(error).__name__}{place}"


def _describe(error: Exception) -> str:
    """The library's own words where they are words, or the place in dagman; in brackets, one line."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    if Path(innermost.filename).is_relative_to(_SOURCE):
        return f" ({describe_own_fault(error)})"
    if isinstance(error, AttributeError) and re.fullmatch(r"[A-Z]\w+", error.name or ""):
        # pydicom: a tag, asked for by its keyword.
        return f" ({error.name} is missing)"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    # Of a KeyError there is but the key.
    if " " not in line or _ABOUT_CODE.search(line):
        return ""
    return f" ({line if len(line) <= _LONGEST else line[:_LONGEST].rpartition(' ')[0] + ' ...'})"
