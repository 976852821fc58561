"""The status of a run (`dagman.training.monitoring.verdicts`) as blocks of a page."""

from __future__ import annotations

from collections.abc import Sequence

from dagman.reports.page import Level, Verdict
from dagman.training.monitoring import verdicts
from dagman.training.monitoring.verdicts import LIGHTS, Light

LEVELS: dict[Light, Level] = {"green": "ok", "amber": "warn", "red": "bad"}
"""Level of a page's blocks for each status."""


def show_verdicts(judged: Sequence[verdicts.Verdict]) -> list[Verdict]:
    """Show each verdict with its remedy, most severe first."""
    return [show_verdict(verdict) for verdict in sorted(judged, key=lambda verdict: LIGHTS.index(verdict.light))]


def show_verdict(verdict: verdicts.Verdict) -> Verdict:
    """Convert a verdict to a block: its status, its sentence, and what to try."""
    remedy = f" **What to try:** {verdict.remedy}" if verdict.remedy else ""
    return Verdict("early" if verdict.early else LEVELS[verdict.light], f"{verdict.text}{remedy}")


def summarize_verdicts(judged: Sequence[verdicts.Verdict]) -> Verdict:
    """Summarise all verdicts of a run in its overall status."""
    total = verdicts.sum_up(judged)
    return Verdict(LEVELS[total.light], f"{total.light.capitalize()}. {total.text}")


def state_progress(done: int, wanted: int) -> str:
    """State the progress of a run in a sentence."""
    if done >= wanted:
        return f"**Complete**: all {wanted} steps are done."
    return f"**Unfinished**: {done} of {wanted} steps are done. Repeat the command to resume; schedules span all steps."
