"""The errors that a user can fix.

```
DagmanError
├── ScanError            one scan cannot be read or used
├── StoreError           a store is missing, damaged, locked, or of another version
├── TableError           a table's column, row or value is wrong
├── SettingsError        a preset, key or value is unknown or contradicts another
├── RunError             a run folder exists, is damaged, or does not fit its settings
├── EncoderError         weights cannot be loaded, or do not fit what they are given
├── TaskError            a downstream task cannot run on these items
└── MissingExtraError    an optional library is not installed
```
Each message states in one line what is wrong, where, and what to do; the command line prints it and exits with code 2. Any other
exception is a bug in dagman and keeps its traceback.
"""

from __future__ import annotations

import errno


class DagmanError(Exception):
    """Base class of all errors that a user can fix; its text is one line.

    Args:
        what: What is wrong.
        where: The file, row or key that it concerns.
        do: What the user can do about it, as an imperative.

    >>> str(ScanError("holds one slice", where="a.nii.gz", do="Give a volume"))
    'a.nii.gz: holds one slice. Give a volume.'
    """

    exit_code = 2
    """Exit code of the command line."""

    def __init__(self, what: str, *, where: object = None, do: str | None = None) -> None:
        self.what = " ".join(str(what).split()).rstrip(".")
        self.where = None if where is None else str(where)
        self.do = None if do is None else " ".join(do.split()).rstrip(".")
        super().__init__(self.what)

    def __str__(self) -> str:
        location = f"{self.where}: " if self.where else ""
        remedy = f". {self.do}." if self.do else "."
        return f"{location}{self.what}{remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Default pickling, as between worker processes, would drop the keyword-only fields.
        return (_rebuild, (type(self), self.what, self.where, self.do))


def _rebuild(kind: type[DagmanError], what: str, where: str | None, do: str | None) -> DagmanError:
    return kind(what, where=where, do=do)


class ScanError(DagmanError):
    """One scan cannot be read or used; the remaining scans are still processed."""


class StoreError(DagmanError):
    """A store is missing, damaged, locked by another writer, or of another version."""


class TableError(DagmanError):
    """A table's column, row or value is wrong."""


class SettingsError(DagmanError):
    """A preset, key or value is unknown or contradicts another."""


class RunError(DagmanError):
    """A run folder already exists, is damaged, or does not fit the given settings."""


class EncoderError(DagmanError):
    """Weights cannot be loaded, or do not fit the scan they are given."""


class TaskError(DagmanError):
    """A downstream task cannot run on these items."""


class MissingExtraError(DagmanError):
    """An optional library is not installed; the message names the extra."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"needs {library}, which is not installed", do=f"pip install 'dagman[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (DagmanError, self.what, self.where, self.do))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Check whether a write failed because the disk or a quota is full."""
    # safetensors and pyarrow report the system's error number only in their message.
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    return number in _FULL or any(f"os error {known})" in text or f"[errno {known}]" in text for known in _FULL)


def explain_system_error(error: BaseException) -> str | None:
    """Describe a full disk or an inaccessible file in one line; returns None for any other error."""
    name = getattr(error, "filename", None)
    where = f"{name}: " if name else ""
    if is_full_disk(error):
        return f"{where}there is no disk space left. Free some space, then repeat the command."
    if isinstance(error, OSError) and error.errno is not None and name:
        return (
            f"{where}{(error.strerror or 'cannot be used').lower()}. "
            "Check that the file and its folder exist and that you have access to them."
        )
    return None
