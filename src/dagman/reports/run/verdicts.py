"""What the monitors show of a run, as one plain sentence each: pure functions of numbers.

The limits are those of the warnings during the run (`dagman.training.monitoring.verdicts`);
what they mean is METHOD, What is watched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dagman.records.counts import count_noun
from dagman.reports.page import Verdict
from dagman.training.monitoring.verdicts import EARLY, FRESH, WAITING, judge_projector

UNIFORM_ATTENTION = 0.99
"""Entropy of the attention, as a share of ln N, from which it is called almost uniform. [ours; short runs: 0.998 or more]"""
BRIGHTNESS = 0.7
"""Rank correlation of attention and intensity above which masking is reported to follow brightness. [ours]"""
NO_GAIN = 0.02
"""Gain below which the student is reported to do no better than one constant answer. [ours]"""
YOUNG = 90
"""Steps within which a student need not beat the trivial answers yet (METHOD, Small runs)."""
_PREDICTS = 0.1
_TELLING = 0.2
_FEW_STEPS = 10
_LOST_SPREAD = 0.05
_ONE_DIRECTION = 1.5
_OFTEN_CLIPPED = 0.5


def summarize_verdicts(verdicts: Sequence[Verdict]) -> Verdict:
    """The headline over all of a run's verdicts: as grave as the gravest."""
    faults = sum(verdict.level == "bad" for verdict in verdicts)
    notes = sum(verdict.level == "warn" for verdict in verdicts)
    if faults:
        return Verdict(
            "bad",
            f"**This run is not healthy**: {count_noun(faults, 'fault')}, {count_noun(notes, 'note')}. Mend the faults before its "
            "encoder is used.",
        )
    if notes:
        return Verdict("warn", f"**No fault is seen, but {count_noun(notes, 'reservation')}**, each explained below.")
    return Verdict("ok", "**This run is healthy**: nothing has collapsed, and every monitor is in its normal range.")


def judge_progress(done: int, wanted: int) -> Verdict:
    """Whether the run reached its last step."""
    if done >= wanted:
        return Verdict("ok", f"**Complete**: all {wanted} steps are done.")
    return Verdict(
        "warn",
        f"**Unfinished**: {done} of {wanted} steps are done. Repeat the command to go on; schedules span all steps.",
    )


def judge_losses(rows: Sequence[Mapping[str, Any]], clip: float) -> list[Verdict]:
    """Whether the losses are finite, and whether the gradient is cut most of the time (over the last half of the steps)."""
    if not rows:
        return [Verdict("warn", "**Losses**: no step is done yet.")]
    wrong = [row["step"] for row in rows if not _is_finite(row.get("total"))]
    if wrong:
        return [
            Verdict("bad", f"**Losses**: not finite from step {wrong[0]} on. Lower `optim.lr` or check the scans of that step.")
        ]
    norms = [row["grad_norm"] for row in rows[len(rows) // 2 :] if _is_finite(row.get("grad_norm"))]
    cut = sum(norm > clip for norm in norms) / len(norms) if norms else 0.0
    if cut > _OFTEN_CLIPPED:
        return [
            Verdict(
                "warn",
                f"**Gradient**: cut to {clip:g} in {cut:.0%} of the later steps, so that steps are smaller than the rate set.",
            )
        ]
    return [
        Verdict(
            "ok", f"**Losses and gradient**: finite throughout; the gradient was cut to {clip:g} in {cut:.0%} of the later steps."
        )
    ]


def judge_reconstruction(monitored: Mapping[str, float], step: int) -> Verdict:
    """Whether the student restores masked voxels better, at a step, than the best of three trivial answers."""
    names = {
        "visible_mean": "the view's visible mean",
        "training_median": "the training median",
        "push_pull": "a smooth fill from visible voxels",
    }
    best = min(names, key=lambda name: monitored[name])
    numbers = (
        f"error {monitored['student']:.3f} against {monitored[best]:.3f} of {names[best]}, the best of three trivial answers "
        f"(ratio {monitored['ratio']:.2f})"
    )
    if monitored["ratio"] < 1:
        return Verdict("ok", f"**Reconstruction** beats the trivial answers: {numbers}.")
    if step < YOUNG:
        return Verdict(
            "warn", f"**Reconstruction** does not yet beat the trivial answers: {numbers}. It usually does within 30 to 90 steps."
        )
    return Verdict(
        "bad", f"**Reconstruction** does not beat the trivial answers: {numbers}. The encoder has learned less than a blur knows."
    )


def judge_targets(name: str, monitored: Mapping[str, float], step: int, steps: int) -> Verdict:
    """Whether a projector's targets are alive, and whether the student predicts them, at a step of so many."""
    head = f"**{name.upper()} targets**"
    numbers = f"H {monitored['H']:.2f}, MI {monitored['MI']:.2f}, gain {monitored['gain']:.2f}"
    for key, text in judge_projector(name, monitored, step < EARLY * steps):
        if not key.startswith(("uniform", "collapse")):
            return Verdict("warn", f"{head} ({numbers}): {text}")
        fresh = max(YOUNG, round(FRESH * steps))
        if step < fresh:
            return Verdict("warn", f"{head} ({numbers}): {text} So early (before step {fresh}) this may still pass.")
        return Verdict("bad", f"{head} ({numbers}): {text}")
    notify = "distinguish samples" if monitored["MI"] >= _TELLING else "hardly distinguish samples"
    if monitored["gain"] >= _PREDICTS:
        return Verdict("ok", f"{head} {notify}, and the student predicts them ({numbers}).")
    if monitored["gain"] >= NO_GAIN:
        return Verdict("ok", f"{head} {notify}, and the student begins to predict them ({numbers}).")
    image = "Image targets often stay there in short runs with few views a step."
    patch = "Longer runs, or more views a step, may help."
    constant = "but the student does no better than one constant answer"
    return Verdict("warn", f"{head} {notify} ({numbers}), {constant}. {patch if name == 'ampd' else image}")


def judge_features(monitored: Mapping[str, float], first: Mapping[str, float]) -> Verdict:
    """Whether x4 has shrunk to a point or a line; `first` is the same at the run's first measurement."""
    numbers = (
        f"standard deviation {monitored['std']:.3g} (first {first['std']:.3g}), effective rank "
        f"{monitored['effective_rank']:.1f} (first {first['effective_rank']:.1f})"
    )
    if monitored["std"] < _LOST_SPREAD * first["std"]:
        return Verdict("bad", f"**Features** have collapsed to nearly one point: {numbers}.")
    if monitored["effective_rank"] < _ONE_DIRECTION:
        return Verdict("bad", f"**Features** have collapsed to nearly one direction: {numbers}.")
    return Verdict("ok", f"**Features** of the last stage keep their spread: {numbers}.")


def judge_attention(monitored: Mapping[str, float], guides: bool) -> Verdict:
    """How uniform the attention is, and whether it merely follows brightness; `guides`: it decides what is masked."""
    numbers = f"entropy {monitored['entropy']:.4f} of its maximum, correlation with brightness {monitored['brightness']:+.2f}"
    follows = abs(monitored["brightness"]) > BRIGHTNESS
    order = (
        f"the {'brightest' if monitored['brightness'] > 0 else 'darkest'} tissue first"
        if follows
        else "an order that is not mere brightness"
    )
    use = f" The masks use its order alone: {order}." if guides else ""
    if monitored["entropy"] >= UNIFORM_ATTENTION:
        usual = "as always in short runs: its map does not mean anything yet."
        return Verdict("warn", f"**Attention** is almost uniform ({numbers}), {usual}{use}")
    if follows:
        return Verdict(
            "warn", f"**Attention** follows brightness ({numbers}): it may mark a density rather than what matters.{use}"
        )
    return Verdict("ok", f"**Attention** is neither uniform nor mere brightness ({numbers}).{use}")


def judge_waiting(shares: Sequence[float]) -> Verdict:
    """Whether data keeps the machine waiting; the first step, which starts the loader, does not count."""
    if len(shares) < _FEW_STEPS:
        return Verdict("ok", f"**Data**: too few steps ({len(shares)}) to show whether the machine waits for them.")
    share = sum(shares[1:]) / len(shares[1:])
    if share > WAITING:
        return Verdict(
            "warn",
            f"**Data**: {share:.0%} of the time is spent waiting for views (limit {WAITING:.0%}). Raise `train.workers`, or "
            "use a faster disk.",
        )
    return Verdict("ok", f"**Data**: {share:.0%} of the time is spent waiting for views (limit {WAITING:.0%}).")


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
