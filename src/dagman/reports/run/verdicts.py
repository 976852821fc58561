"""The traffic light of a run (`dagman.training.monitoring.verdicts`) as blocks of a page."""

from __future__ import annotations

from collections.abc import Sequence

from dagman.reports.page import Level, Verdict
from dagman.training.monitoring import verdicts
from dagman.training.monitoring.verdicts import LIGHTS, Light

LEVELS: dict[Light, Level] = {"green": "ok", "amber": "warn", "red": "bad"}
"""Levels of a page's blocks by the light."""


def show_verdicts(judged: Sequence[verdicts.Verdict]) -> list[Verdict]:
    """Each verdict with what to try, the gravest first."""
    return [show_verdict(one) for one in sorted(judged, key=lambda one: LIGHTS.index(one.light))]


def show_verdict(verdict: verdicts.Verdict) -> Verdict:
    """A verdict as a block: its light, its sentence, what to try."""
    remedy = f" **What to try:** {verdict.remedy}" if verdict.remedy else ""
    return Verdict("early" if verdict.early else LEVELS[verdict.light], f"{verdict.text}{remedy}")


def summarize_verdicts(judged: Sequence[verdicts.Verdict]) -> Verdict:
    """The light over all of a run's verdicts."""
    total = verdicts.sum_up(judged)
    return Verdict(LEVELS[total.light], f"{total.light.capitalize()}. {total.text}")


def state_progress(done: int, wanted: int) -> str:
    """How far the run is, in a sentence."""
    if done >= wanted:
        return f"**Complete**: all {wanted} steps are done."
    return f"**Unfinished**: {done} of {wanted} steps are done. Repeat the command to resume; schedules span all steps."
