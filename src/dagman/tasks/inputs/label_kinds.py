"""Whether a label names classes, or is a number that a classification would take apart."""

from __future__ import annotations

import math

from dagman.errors import TaskError
from dagman.tables.table import Table

_MOST_FRACTIONS = 5
"""Different numbers, one of them not whole, that may still be classes: half grades."""
_MOST_COUNTS = 20
"""Different whole numbers that may still be classes. [ours]"""


def refuse_continuous(table: Table) -> None:
    """Raise TaskError where the table's label is a number of many values, naming the command that predicts it."""
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
