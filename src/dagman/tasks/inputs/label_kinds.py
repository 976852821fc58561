"""Distinguish labels that are classes from continuous numbers, which need a regression."""

from __future__ import annotations

import math

from dagman.errors import TaskError
from dagman.tables.table import Table

_MOST_FRACTIONS = 5
"""Maximum number of classes if some are fractions, such as half grades."""
_MOST_COUNTS = 20
"""Maximum number of classes if all are whole numbers. [ours]"""


def refuse_continuous(table: Table) -> None:
    """Refuse a label with many numeric values.

    Raises:
        TaskError: The label is continuous; the message suggests `dagman regress`.
    """
    try:
        numbers = [float(name) for name in table.classes]
    except ValueError:
        return
    whole = all(math.isfinite(number) and number.is_integer() for number in numbers)
    if len(numbers) <= (_MOST_COUNTS if whole else _MOST_FRACTIONS):
        return
    label = table.roles.get("label", "label")
    what = f"column '{label}' holds {len(numbers)} different numbers ({table.classes[0]} to {table.classes[-1]}), not classes"
    raise TaskError(what, where=table.path, do=f"To predict a number: dagman regress MODEL {table.path.name} --label {label}")
