"""Reads values of a DICOM data set as plain Python types; an invalid value raises ScanError with the name of its element.

pydicom converts a value when it is first accessed, and returns whatever the file holds: nothing, text, several values, a sequence.
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
    """Read a value as text; several values are joined by backslashes, and "" means that there is none."""
    return "\\".join(read_texts(data, keyword))


def read_texts(data: Dataset, keyword: str) -> tuple[str, ...]:
    """Read all values as text; () if the element is missing or empty."""
    value = _read(data, keyword)
    if value is None or isinstance(value, Sequence):
        return ()
    return tuple(str(part) for part in (value if _is_multiple(value) else [value]))


def read_number(data: Dataset, keyword: str) -> float | None:
    """Read one number; None if the element is missing or empty. Raises ScanError if it holds anything else."""
    numbers = read_numbers(data, keyword)
    if len(numbers) > 1:
        raise ScanError(f"{keyword} holds {len(numbers)} numbers, not one", do=_EXPORT_AGAIN)
    return numbers[0] if numbers else None


def read_numbers(data: Dataset, keyword: str) -> tuple[float, ...]:
    """Read all numbers; () if the element is missing or empty. Raises ScanError if it holds anything else."""
    value = _read(data, keyword)
    if value is None:
        return ()
    try:
        return tuple(float(part) for part in (value if _is_multiple(value) else [value]))
    except (TypeError, ValueError, OverflowError) as error:
        raise ScanError(f"{keyword} is not a number", do=_EXPORT_AGAIN) from error


def read_count(data: Dataset, keyword: str, default: int) -> int:
    """Read a whole number above 0; `default` if the element is missing, empty or 0. Raises ScanError if it holds anything else."""
    number = read_number(data, keyword)
    if number is not None and (number != number // 1 or number < 0):
        raise ScanError(f"{keyword} is {number:g}, not a whole number", do=_EXPORT_AGAIN)
    return int(number) if number else default


def read_items(data: Dataset, keyword: str) -> list[Dataset]:
    """Read the items of a sequence; [] if it is missing or empty. Raises ScanError if the element holds anything else."""
    value = _read(data, keyword)
    if value is None:
        return []
    if not isinstance(value, Sequence):
        raise ScanError(f"{keyword} is not a sequence", do=_EXPORT_AGAIN)
    return list(value)


def _read(data: Dataset, keyword: str) -> Any:
    """Read a value as pydicom returns it; None if it is missing or empty."""
    try:
        value = data.get(keyword)
    except Exception as error:  # pydicom converts values on access, and raises many kinds.
        raise ScanError(f"{keyword} holds a value that its type does not allow", do=_EXPORT_AGAIN) from error
    is_empty = value is None or (isinstance(value, (str, bytes, MultiValue, Sequence)) and len(value) == 0)
    return None if is_empty else value


def _is_multiple(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) and hasattr(value, "__len__")
