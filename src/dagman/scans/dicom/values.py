"""Values of a DICOM data set as plain Python: a tag that is absent, empty, doubled or garbled is named, and never an exception.

pydicom converts a value when it is first read, and returns whatever the file holds: nothing, text, several, a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from dagman.errors import ScanError

_EXPORT_AGAIN = "Export the series again"


def read_text(data: Dataset, keyword: str) -> str:
    """The value as text, several ones parted by a backslash; empty where there is none."""
    return "\\".join(read_texts(data, keyword))


def read_texts(data: Dataset, keyword: str) -> tuple[str, ...]:
    """The values as texts; none where the tag is absent or empty."""
    value = _read(data, keyword)
    if value is None or isinstance(value, Sequence):
        return ()
    return tuple(str(one) for one in (value if _is_several(value) else [value]))


def read_number(data: Dataset, keyword: str) -> float | None:
    """One number; None where the tag is absent or empty. Raises ScanError where it holds anything else."""
    numbers = read_numbers(data, keyword)
    if len(numbers) > 1:
        raise ScanError(f"{keyword} holds {len(numbers)} numbers, not one", do=_EXPORT_AGAIN)
    return numbers[0] if numbers else None


def read_numbers(data: Dataset, keyword: str) -> tuple[float, ...]:
    """All numbers of a tag; none where it is absent or empty. Raises ScanError where it holds anything else."""
    value = _read(data, keyword)
    if value is None:
        return ()
    try:
        return tuple(float(one) for one in (value if _is_several(value) else [value]))
    except (TypeError, ValueError, OverflowError) as error:
        raise ScanError(f"{keyword} is not a number", do=_EXPORT_AGAIN) from error


def read_count(data: Dataset, keyword: str, default: int) -> int:
    """A whole number above 0, `default` where the tag is absent, empty or 0. Raises ScanError where it holds anything else."""
    number = read_number(data, keyword)
    if number is not None and (number != number // 1 or number < 0):
        raise ScanError(f"{keyword} is {number:g}, not a whole number", do=_EXPORT_AGAIN)
    return int(number) if number else default


def read_items(data: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or empty. Raises ScanError where the tag holds anything else."""
    value = _read(data, keyword)
    if value is None:
        return []
    if not isinstance(value, Sequence):
        raise ScanError(f"{keyword} is not a sequence", do=_EXPORT_AGAIN)
    return list(value)


def _read(data: Dataset, keyword: str) -> Any:
    """None for what is empty, too."""
    try:
        value = data.get(keyword)
    except Exception as error:  # pydicom converts values on access, and raises many kinds.
        raise ScanError(f"{keyword} holds a value that its type does not allow", do=_EXPORT_AGAIN) from error
    empty = value is None or (isinstance(value, (str, bytes, MultiValue, Sequence)) and len(value) == 0)
    return None if empty else value


def _is_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) and hasattr(value, "__len__")
