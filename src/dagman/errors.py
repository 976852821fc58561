"""Errors that a user can mend, as a tree.

```
DagmanError
├── ScanError            one scan cannot be read or used
├── StoreError           a store is missing, damaged, locked, or of another version
├── TableError           a table's column, row or value is wrong
├── SettingsError        a preset, key or value is unknown or contradicts another
├── RunError             a run folder exists, is damaged, or does not fit its settings
├── EncoderError         weights cannot be loaded, or do not fit what they are given
├── TaskError            a downstream task cannot be done with these items
└── MissingExtraError    an optional library is not installed
```
Each says in one line what is wrong, where, and what to do; the command line prints it and exits with code 2.
Everything else that is raised is a fault of dagman and keeps its traceback.
"""

from __future__ import annotations

import errno


class DagmanError(Exception):
    """What is wrong, where (file, row, key), and what to do, in one line.

    >>> str(ScanError("holds one slice", where="a.nii.gz", do="Give a volume"))
    'a.nii.gz: holds one slice. Give a volume.'
    """

    exit_code = 2
    """What the command line ends with."""

    def __init__(self, what: str, *, where: object = None, do: str | None = None) -> None:
        self.what = " ".join(str(what).split()).rstrip(".")
        self.where = None if where is None else str(where)
        self.do = None if do is None else " ".join(do.split()).rstrip(".")
        super().__init__(self.what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f". {self.do}." if self.do else "."
        return f"{place}{self.what}{remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only fields are lost by the default pickling between worker processes.
        return (_rebuild, (type(self), self.what, self.where, self.do))


def _rebuild(kind: type[DagmanError], what: str, where: str | None, do: str | None) -> DagmanError:
    return kind(what, where=where, do=do)


class ScanError(DagmanError):
    """One scan cannot be read or used; the others go on."""


class StoreError(DagmanError):
    """A store is missing, damaged, locked by another writer, or of another version."""


class TableError(DagmanError):
    """A table's column, row or value is wrong."""


class SettingsError(DagmanError):
    """A preset, key or value is unknown, or contradicts another."""


class RunError(DagmanError):
    """A run folder exists already, is damaged, or does not fit the settings given."""


class EncoderError(DagmanError):
    """Weights cannot be loaded, or do not fit the scan they are given."""


class TaskError(DagmanError):
    """A downstream task cannot be done with these items."""


class MissingExtraError(DagmanError):
    """An optional library is not installed; the message names the extra."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"needs {library}, which is not installed", do=f"pip install 'dagman[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (DagmanError, self.what, self.where, self.do))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Whether writing failed for want of space, or of a quota; safetensors and pyarrow give the system's number in "
    "their text alone."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    return number in _FULL or any(f"os error {known})" in text or f"[errno {known}]" in text for known in _FULL)


def explain_system_error(error: BaseException) -> str | None:
    """One line for what the system refused: a full disk, or a file that is gone or closed; None for anything else."""
    name = getattr(error, "filename", None)
    where = f"{name}: " if name else ""
    if is_full_disk(error):
        return f"{where}there is no disk space left. Free some, then repeat the command."
    if isinstance(error, OSError) and error.errno is not None and name:
        return (
            f"{where}{(error.strerror or 'cannot be used').lower()}. Check that the file and its folder are there and open to you."
        )
    return None
