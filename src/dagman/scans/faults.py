"""Turns the exceptions of other libraries into ScanError: whatever is raised while a file is read becomes that file's reason.

pydicom, nibabel, numpy and the decoders raise many kinds of exceptions on damaged bytes; none of them may stop the work on other
files.
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
"""Part of the reason if the exception comes from dagman's own code, so that tests can distinguish it from a damaged file."""
_LONGEST = 100
_ABOUT_CODE = re.compile(
    r"'\w+' object|\w\(|__|NoneType|\bb['\"]|\bobject\b|\bargument|\bdtype|literal for|could not convert|unpack|subscript"
    r"|broadcast|reshape"
)
"""Matches messages of Python and numpy about code, which do not help the user of a file."""


@contextlib.contextmanager
def explain_faults(what: str, *, where: object, do: str) -> Iterator[None]:
    """Convert every exception in the block, except our own errors, to a ScanError that begins with `what`.

    An exception raised by dagman's own code, rather than by a library that it calls, is reported as a bug in dagman.

    Args:
        what: what is wrong with the file.
        where: the file.
        do: what the user can do about it.
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
    """Describe an exception as a bug in dagman, with its type and the line of dagman, whichever library raised it.

    This is for failures after a file has been read. The library's message is omitted: it is about code, and may quote values of
    the file's header.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_SOURCE)]
    position = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{OWN_FAULT}: {type(error).__name__}{position}"


def _describe(error: Exception) -> str:
    """Return the library's message if it helps a user, or the line in dagman, in parentheses; otherwise ""."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    if Path(innermost.filename).is_relative_to(_SOURCE):
        return f" ({describe_own_fault(error)})"
    if isinstance(error, AttributeError) and re.fullmatch(r"[A-Z]\w+", error.name or ""):
        # pydicom: an element that was accessed by its keyword does not exist.
        return f" ({error.name} is missing)"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    # The message of a KeyError is only the key.
    if " " not in line or _ABOUT_CODE.search(line):
        return ""
    return f" ({line if len(line) <= _LONGEST else line[:_LONGEST].rpartition(' ')[0] + ' ...'})"
