"""Sample sizes for captions: the items, patients, folds and repeats behind a figure."""

from __future__ import annotations

from dagman.evaluation.results import Results
from dagman.records.counts import count_noun


def state_basis(results: Results, *, of: str = "item", count: int | None = None) -> str:
    """State the sample size, such as "n = 24 items of 8 patients; 5 folds, 5 repeats.".

    Args:
        results: The results.
        of: What is counted, in the singular.
        count: n; None to count the items of the test parts.
    """
    tested = results.splits[results.splits["part"] == "test"]
    items = tested["item"].nunique() if count is None else count
    return f"n = {count_noun(int(items), of)} of {count_noun(int(tested['patient'].nunique()), 'patient')}; {state_folds(results)}."


def state_folds(results: Results) -> str:
    """State folds and repeats, such as "5 folds, 5 repeats"; "the table's own split" if the split was given."""
    folds, repeats = int(results.splits["fold"].nunique()), int(results.splits["repeat"].nunique())
    return f"{folds} folds, {count_noun(repeats, 'repeat')}" if folds > 1 else "the table's own split"
