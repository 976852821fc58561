"""One warning in plain words for each way a run fails silently (METHOD, What is watched)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLLAPSED_MI = 0.05
"""Targets that distinguish samples less than this share of what they could are taken for collapsed. [ours]"""
UNIFORM_H = 0.97
AT_LN_K = 0.99
WAITING = 0.2
FRESH = 0.1
"""Share of a run within which no verdict is passed on targets."""
EARLY = 0.3
"""Share of a run within which a loss at ln K is no news. [ours]"""
_NAMES = {"ampd": "patch", "aitd": "[CLS]", "gitd": "view"}


def judge_projector(name: str, monitor: Mapping[str, float], early: bool) -> list[tuple[str, str]]:
    """Warnings (key, text) for one projector; `early`: too soon to expect that the student has learned."""
    what = f"{name.upper()} ({_NAMES[name]} targets)"
    if monitor["H"] > UNIFORM_H:
        return [
            (
                f"uniform-{name}",
                f"{what} sit at ln K: every target is nearly uniform (H = {monitor['H']:.2f}), so there is nothing to learn from. "
                "Lower teacher.target_entropy, or set teacher.temperature=entropy.",
            )
        ]
    if monitor["MI"] < COLLAPSED_MI:
        return [
            (
                f"collapse-{name}",
                f"{what} have collapsed: all samples get the same target (MI = {monitor['MI']:.2f}). "
                "Try teacher.centering=sinkhorn, or more views a step.",
            )
        ]
    if not early and monitor["ce"] > AT_LN_K * monitor["ln_k"] and monitor["gain"] < 0.02:
        return [
            (
                f"ln-k-{name}",
                f"the {name.upper()} loss is at ln K ({monitor['ce']:.2f}): the student's answer is not better than a constant "
                f"(gain = {monitor['gain']:.2f}). Short runs with few views a step often stay there; more views or steps may help.",
            )
        ]
    return []


def judge_monitors(row: Mapping[str, Any], early: bool) -> list[tuple[str, str]]:
    """Warnings for a row of `monitors.jsonl`."""
    return [w for name, monitor in row.get("projectors", {}).items() for w in judge_projector(name, monitor, early)]


def judge_waiting(shares: list[float]) -> list[tuple[str, str]]:
    """A warning if the last steps waited for data more than a fifth of their time."""
    if len(shares) < 10 or sum(shares) / len(shares) <= WAITING:
        return []
    share = sum(shares) / len(shares)
    return [
        ("waiting", f"{share:.0%} of the time is spent waiting for data. Raise train.workers, or put the store on a faster disk.")
    ]
