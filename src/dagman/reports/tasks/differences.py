"""Paired differences between models on one task: verdicts and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dagman.evaluation.measures import find_measure
from dagman.evaluation.results import Comparison
from dagman.reports.names import format_interval, format_p, name_measure, name_method
from dagman.reports.page import Block, DataTable, Text, Verdict

_SIGNIFICANT = 0.05


def judge_differences(comparisons: Sequence[Comparison]) -> list[Block]:
    """Judge the primary endpoint, then list the secondary differences that are significant after correction.

    If no secondary difference is significant, a sentence states this.
    """
    if not comparisons:
        return [Text("No paired differences were tested.")]
    secondary = [row for row in comparisons if not row.primary]
    blocks: list[Block] = [_judge_primary(row) for row in comparisons if row.primary]
    verdicts = [_state_better(row) for row in secondary if row.corrected < _SIGNIFICANT]
    if not verdicts and secondary:
        kind = "secondary" if blocks else "paired"
        text = f"**None of the {len(secondary)} {kind} differences is statistically significant** after Holm's correction."
        if len(secondary) == 1:
            text = f"**The one {kind} difference is not statistically significant.**"
        verdicts = [Verdict("warn", f"{text} The confidence intervals below show how large a true difference may be.")]
    return [*blocks, *verdicts]


def tabulate_differences(
    comparisons: Sequence[Comparison], sharing: str = "Both models were tested on the same items."
) -> list[Block]:
    """Tabulate first minus second model: interval, p before and after correction, and the smallest detectable difference.

    Args:
        comparisons: The differences; empty for no table.
        sharing: A sentence that states what both models have in common.
    """
    if not comparisons:
        return []
    rows = [
        [
            f"{row.first} − {row.second}",
            name_method(row.method),
            row.subset,
            name_measure(row.name),
            format_interval(row.difference.value, row.difference.low, row.difference.high, sign=True),
            format_p(row.difference.p),
            f"{format_p(row.corrected)} (primary)" if row.primary else format_p(row.corrected),
            f"{row.difference.detectable:.3f}" if math.isfinite(row.difference.detectable) else "–",
            row.difference.how,
        ]
        for row in comparisons
    ]
    detectable = "Detectable: the smallest true difference that would be detected with 80 % power, derived from the interval."
    columns = ["difference", "method", "labels", "measure", "value (95 % CI)", "p", "p corrected", "detectable", "by"]
    return [Text(f"{sharing} {_explain_correction(comparisons)} {detectable}"), DataTable(columns, rows)]


def _explain_correction(comparisons: Sequence[Comparison]) -> str:
    if any(row.primary for row in comparisons):
        others = len(comparisons) - 1
        rest = f"; the p-values of the {others} others are corrected for multiple testing (Holm)" if others > 1 else ""
        return f"The primary endpoint is tested alone{rest}."
    if len(comparisons) == 1:
        return "One comparison was made."
    return (
        f"{len(comparisons)} comparisons were made, with p-values corrected for multiple testing (Holm); no primary endpoint "
        f"was specified (`--primary`)."
    )


def _judge_primary(row: Comparison) -> Verdict:
    value = format_interval(row.difference.value, row.difference.low, row.difference.high, sign=True)
    pair = f"`{row.first}` minus `{row.second}` ({name_method(row.method)}, {row.subset})"
    shown = f"**Primary endpoint**: {name_measure(row.name)} of {pair} is {value}, p {format_p(row.difference.p)}"
    if row.difference.p < _SIGNIFICANT:
        return Verdict("ok", f"{shown}: `{_find_better(row)[0]}` is better.")
    return Verdict("warn", f"{shown}: not statistically significant.")


def _state_better(row: Comparison) -> Verdict:
    better, worse = _find_better(row)
    by = f"{name_measure(row.name)} by {abs(row.difference.value):.3f}, p {format_p(row.corrected)} after Holm"
    return Verdict("ok", f"`{better}` is better than `{worse}` ({name_method(row.method)}, {row.subset}): {by}.")


def _find_better(row: Comparison) -> tuple[str, str]:
    ahead = (row.difference.value > 0) != (find_measure(row.name).higher_is_better is False)
    return (row.first, row.second) if ahead else (row.second, row.first)
