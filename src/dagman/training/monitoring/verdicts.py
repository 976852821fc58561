"""Verdicts of the monitors, as a traffic light with a sentence and what to try: pure functions (METHOD, Monitors).

Green: in the normal range. Amber: usable, with the reservation stated. Red: the run is not healthy; do not use its encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dagman.records.counts import count_noun

Light = Literal["green", "amber", "red"]
LIGHTS: tuple[Light, ...] = ("red", "amber", "green")
"""Most severe first."""

COLLAPSED_MI = 0.05
"""Mutual information of targets and samples, as a share of its maximum, below which targets count as collapsed. [ours]"""
UNIFORM_H = 0.97
AT_LN_K = 0.99
WAITING = 0.2
FRESH = 0.1
"""Share of a run within which targets are not judged yet."""
EARLY = 0.3
"""Share of a run within which a loss at ln K is normal. [ours]"""
UNIFORM_ATTENTION = 0.99
"""Entropy of the attention, as a share of ln N, from which it counts as almost uniform. [ours; short runs: 0.998 or more]"""
LONG = 1000
"""Steps after which attention should no longer be uniform (0.96 in one run of 1,000 steps). [ours]"""
BRIGHTNESS = 0.7
"""Rank correlation of attention and intensity above which masking is reported to follow brightness. [ours]"""
NO_GAIN = 0.02
"""Gain below which the student counts as no better than a constant prediction. [ours]"""
YOUNG = 90
"""Steps within which a student is not yet expected to beat the trivial baselines (METHOD, Small runs)."""
DIVERGED = 1.5
"""Growth of the AMIP loss over its lowest value from which a run counts as diverging. [ours]"""
RISEN = 1.2
"""Growth of the AMIP loss over that of the first steps from which a run counts as diverging. [ours]"""
WINDOW, OPENING = 10, 3
"""Fewest steps over which the AMIP loss is averaged before it is compared; and the same at the start of a run. [ours]"""
WINDOW_VIEWS = 100
"""Fewest views in such an average in long runs: with 4 views per step, averages of 10 steps differed by a factor of 1.9. [ours]"""
_PREDICTS = 0.1
_LEAST_GAIN = -99
_TELLING = 0.2
_FEW_STEPS = 10
_NO_SPREAD = 1e-6
_LOST_SPREAD = 0.05
_ONE_DIRECTION = 1.5
_OFTEN_CLIPPED = 0.5
_SPARSE = 0.5
_HOPELESS = 2.0
_NAMES = {"ampd": "patch", "aitd": "[CLS]", "gitd": "view"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict of one monitor.

    Attributes:
        light: green, amber or red.
        text: A sentence; `**` surrounds its subject, backticks surround settings.
        remedy: What to try; empty if nothing needs to be done.
        key: Its name in `notes.jsonl`, such as collapse-ampd; empty for a green one.
        early: Whether green only means that it is too early to judge.
    """

    light: Light
    text: str
    remedy: str = ""
    key: str = ""
    early: bool = False

    @property
    def plain(self) -> str:
        """Sentence and remedy without emphasis, as printed."""
        return " ".join(part for part in (self.text, self.remedy) if part).replace("**", "").replace("`", "")

    def to_json(self) -> dict[str, str]:
        """As `summary.json` holds it."""
        return asdict(self) | {"text": self.text.replace("**", "").replace("`", ""), "remedy": self.remedy.replace("`", "")}


def sum_up(verdicts: Sequence[Verdict]) -> Verdict:
    """The status of a run: as severe as the most severe verdict; its remedy is that of the first such verdict."""
    faults, notes = (sum(one.light == light for one in verdicts) for light in ("red", "amber"))
    remedy = next((one.remedy for light in LIGHTS[:2] for one in verdicts if one.light == light and one.remedy), "")
    if faults:
        counts = " and ".join(count_noun(count, noun) for count, noun in ((faults, "fault"), (notes, "warning")) if count)
        text = f"**This run is not healthy**: {counts}. Fix the {'fault' if faults == 1 else 'faults'} before you use its encoder."
        return Verdict(light="red", text=text, remedy=remedy)
    if notes:
        text = (
            f"**No fault was detected, but there {'is' if notes == 1 else 'are'} {count_noun(notes, 'warning')}**, explained below."
        )
        return Verdict(light="amber", text=text, remedy=remedy)
    return Verdict(light="green", text="**This run is healthy**: nothing has collapsed, and every monitor is in its normal range.")


def choose_window(batch: int, steps: int) -> int:
    """Number of steps over which the AMIP loss is averaged: at least `WINDOW_VIEWS` views, or a third of a shorter run."""
    return max(WINDOW, min(math.ceil(WINDOW_VIEWS / batch), steps // 3))


def judge_losses(
    rows: Sequence[Mapping[str, Any]],
    clip: float,
    start: float | None = None,
    best: float | None = None,
    window: int = WINDOW,
) -> list[Verdict]:
    """Whether the losses are finite, whether they grow, and whether the gradient is clipped most of the time.

    rows: The last steps. start, best: mean AMIP of the run's first `OPENING` steps, and the lowest over any `window` steps.
    """
    if not rows:
        return [Verdict(light="amber", text="**Losses**: no step is complete yet.")]
    wrong = [row["step"] for row in rows if not _is_finite(row.get("total"))]
    if wrong:
        text = f"**Losses**: not finite from step {wrong[0]} on."
        return [Verdict(light="red", text=text, remedy="Lower `optim.lr`, or check the scans of that step.", key="not-finite")]
    last = average_loss(rows, window)
    if last is not None and ((best is not None and last > DIVERGED * best) or (start is not None and last > RISEN * start)):
        from_best = "" if best is None else f", {best:.3g} at its best"
        text = f"**Losses** diverge: the AMIP loss is {last:.3g}; it was {start or last:.3g} at the start{from_best}."
        remedy = "Lower `optim.lr` (try a third of it) or increase `optim.warmup`, and start the run again."
        return [Verdict(light="red", text=text, remedy=remedy, key="diverging")]
    norms = [row["grad_norm"] for row in rows[len(rows) // 2 :] if _is_finite(row.get("grad_norm"))]
    cut = sum(norm > clip for norm in norms) / len(norms) if norms else 0.0
    if cut > _OFTEN_CLIPPED:
        text = f"**Gradient**: clipped to {clip:g} in {cut:.0%} of the later steps, so the steps are smaller than set."
        return [Verdict(light="amber", text=text, remedy="Lower `optim.lr`, or increase `optim.clip`.", key="clipped")]
    text = f"**Losses and gradient**: finite throughout; the gradient was clipped to {clip:g} in {cut:.0%} of the later steps."
    return [Verdict(light="green", text=text)]


def average_loss(rows: Sequence[Mapping[str, Any]], window: int = WINDOW) -> float | None:
    """The mean AMIP loss of the last steps; None if the method has no such loss or there are fewer than `window` steps."""
    values = [rows[i].get("amip") for i in range(-min(window, len(rows)), 0)]
    finite = [value for value in values if value is not None and _is_finite(value)]
    return math.fsum(finite) / window if len(finite) == window else None


def judge_masks(monitored: Mapping[str, float]) -> Verdict:
    """Whether the masks hide what they should: `share` of the units inside the scans is masked, `wanted` was requested."""
    share, wanted = monitored["share"], monitored["wanted"]
    numbers = f"{share:.1%} of the units inside the scans are masked; {wanted:.1%} were requested"
    if share == 0:
        text = f"**Masking** hides nothing: {numbers}. The student sees its targets and learns nothing."
        return Verdict(light="red", text=text, remedy="Check `masking.kind`, and increase `masking.ratio`.", key="masks-empty")
    if share >= 1:
        text = f"**Masking** hides everything: {numbers}. The student has no visible context."
        return Verdict(light="red", text=text, remedy="Check `masking.kind`, and lower `masking.ratio`.", key="masks-full")
    if share < _SPARSE * wanted:
        text = f"**Masking** hides less than it should: {numbers}."
        return Verdict(light="amber", text=text, remedy="Check `masking.kind`, and increase `view.side`.", key="masks-sparse")
    return Verdict(light="green", text=f"**Masks**: {numbers}.")


def judge_reconstruction(monitored: Mapping[str, float], step: int, steps: int | None = None) -> Verdict:
    """Whether the student reconstructs masked voxels better, at a step (of `steps`), than the best of three trivial baselines."""
    names = {
        "visible_mean": "the mean of the visible voxels",
        "training_median": "the training median",
        "push_pull": "interpolation from the visible voxels",
    }
    best = min(names, key=lambda name: monitored[name])
    numbers = (
        f"error {monitored['student']:.3f}, compared with {monitored[best]:.3f} for {names[best]}, the best of three trivial "
        f"baselines (ratio {monitored['ratio']:.2f})"
    )
    if monitored["ratio"] < 1:
        return Verdict(light="green", text=f"**Reconstruction** beats the trivial baselines: {numbers}.")
    if step < YOUNG and monitored["ratio"] < _HOPELESS:
        text = f"**Reconstruction** does not yet beat the trivial baselines: {numbers}. It usually does within 30 to 90 steps."
        # Too early to change anything, unless the run ends here.
        return Verdict(light="amber", text=text, remedy="Train longer: `train.steps`." if steps and step >= steps else "")
    text = (
        f"**Reconstruction** does not beat the trivial baselines: {numbers}. The encoder reconstructs no better than interpolation."
    )
    remedy = "Lower `optim.lr` if the loss has jumped; train longer (`train.steps`) if it is still falling."
    return Verdict(light="red", text=text, remedy=remedy, key="reconstruction")


def judge_targets(name: str, monitored: Mapping[str, float], step: int, steps: int, *, solved: bool = False) -> Verdict:
    """Whether a projector's targets carry information, and whether the student predicts them, at a step of `steps`.

    solved: Whether the temperature is solved for an entropy, so that it cannot be too high.
    """
    head = f"**{name.upper()} targets**"
    # Targets that hardly differ leave nothing to gain, and the ratio grows without bounds.
    gain = f"{monitored['gain']:.2f}" if monitored["gain"] > _LEAST_GAIN else f"below {_LEAST_GAIN}"
    numbers = f"H {monitored['H']:.2f}, MI {monitored['MI']:.2f}, gain {gain}"
    if fault := _find_fault(name, monitored, solved):
        key, text, remedy = fault
        # The last step is judged however short the run: its encoder will be used.
        fresh = max(YOUNG, round(FRESH * steps))
        if step < min(fresh, steps):
            text = f"{head} ({numbers}): {text} This early (before step {fresh}), it may still recover."
            return Verdict(light="amber", text=text)
        return Verdict(light="red", text=f"{head} ({numbers}): {text}", remedy=remedy, key=f"{key}-{name}")
    longer = "More views per step (`train.batch`) or more steps may help."
    if step >= EARLY * steps and monitored["ce"] > AT_LN_K * monitored["ln_k"] and monitored["gain"] < NO_GAIN:
        text = (
            f"{head} ({numbers}): the {name.upper()} loss, {monitored['ce']:.2f}, has not fallen below ln K = "
            f"{monitored['ln_k']:.2f}: the student predicts no better than a constant. This is common in short runs with few "
            "views per step."
        )
        return Verdict(light="amber", text=text, remedy=longer, key=f"ln-k-{name}")
    notify = "distinguish samples" if monitored["MI"] >= _TELLING else "hardly distinguish samples"
    if monitored["gain"] >= NO_GAIN:
        predicts = "predicts them" if monitored["gain"] >= _PREDICTS else "is beginning to predict them"
        return Verdict(light="green", text=f"{head} {notify}, and the student {predicts} ({numbers}).")
    usual = "" if name == "ampd" else " This is common for image-level targets in short runs with few views per step."
    text = f"{head} {notify} ({numbers}), but the student predicts no better than a constant.{usual}"
    return Verdict(light="amber", text=text, remedy=f"Longer runs, or more views per step, may help{' here' if usual else ''}.")


def _find_fault(name: str, monitored: Mapping[str, float], solved: bool) -> tuple[str, str, str] | None:
    """Key, sentence and remedy if the targets are uniform or collapsed."""
    what = f"the {_NAMES[name]} targets"
    if monitored["H"] > UNIFORM_H:
        return (
            "uniform",
            f"{what} are nearly uniform (their loss is at ln K), so there is nothing to learn from.",
            "Lower `optim.lr`: the teacher's outputs no longer differ."
            if solved
            else "Lower `teacher.temperature_end`, or set `teacher.temperature=entropy`.",
        )
    if monitored["MI"] < COLLAPSED_MI:
        return (
            "collapse",
            f"{what} have collapsed: all samples have the same target.",
            "Lower `optim.lr`, try `teacher.centering=sinkhorn`, or more views per step (`train.batch`).",
        )
    return None


def judge_features(monitored: Mapping[str, float], first: Mapping[str, float]) -> Verdict:
    """Whether x4 has collapsed to a point or a line; `first`: the same at the run's first evaluation."""
    numbers = (
        f"standard deviation {monitored['std']:.3g} (at the start {first['std']:.3g}), effective rank "
        f"{monitored['effective_rank']:.1f} (at the start {first['effective_rank']:.1f})"
    )
    remedy = "Do not use the encoder. Lower `optim.lr`, try `teacher.centering=sinkhorn`, and start again."
    if monitored["std"] < max(_NO_SPREAD, _LOST_SPREAD * first["std"]):
        text = f"**Features** have collapsed to nearly one point: {numbers}. The encoder maps every scan to the same features."
        return Verdict(light="red", text=text, remedy=remedy, key="features-point")
    # Few tokens span few directions from the start: two views of one token each always lie on a line.
    if monitored["effective_rank"] < _ONE_DIRECTION < 2 * _ONE_DIRECTION <= first["effective_rank"]:
        text = f"**Features** have collapsed to nearly one direction: {numbers}."
        return Verdict(light="red", text=text, remedy=remedy, key="features-line")
    return Verdict(light="green", text=f"**Features** of the last stage keep their spread: {numbers}.")


def judge_teacher(last: Mapping[str, Any], first: Mapping[str, Any], first_weights: float) -> Verdict:
    """Whether the teacher follows the student; `first_weights`: the share of its initial weights that the momenta leave in it."""
    frozen = last["step"] > first["step"] and all(
        last.get(part) == first.get(part) for part in ("features", "attention", "diversity")
    )
    remedy = "Set `teacher.momentum` and `teacher.momentum_end` to auto."
    if frozen:
        text = (
            f"**Teacher** is not updated: its features at step {last['step']} are identical to those at step {first['step']}. "
            f"The student learns from random targets."
        )
        return Verdict(light="red", text=text, remedy=remedy, key="teacher-frozen")
    if first_weights > _SPARSE:
        text = f"**Teacher** hardly follows the student: its initial weights still contribute {first_weights:.0%}."
        return Verdict(light="amber", text=text, remedy=f"{remedy[:-1]}, or train longer.", key="teacher-slow")
    return Verdict(
        light="green", text=f"**Teacher** follows the student: its initial weights contribute a fraction of {first_weights:.2g}."
    )


def judge_attention(monitored: Mapping[str, float], guides: bool, step: int = 0) -> Verdict:
    """How uniform the attention is, and whether it merely follows brightness; `guides`: whether it decides what is masked."""
    numbers = f"entropy {monitored['entropy']:.4f} of its maximum, correlation with brightness {monitored['brightness']:+.2f}"
    follows = abs(monitored["brightness"]) > BRIGHTNESS
    order = (
        f"the {'brightest' if monitored['brightness'] > 0 else 'darkest'} tissue first"
        if follows
        else "which does not just follow brightness"
    )
    use = f" Masking uses only its ranking: {order}." if guides else ""
    noisy = "Try a noisier teacher (`teacher.noise`), or compare with `masking.kind=random`."
    if monitored["entropy"] >= UNIFORM_ATTENTION:
        usual = "as usual in short runs: the map is not meaningful yet." if step < LONG else "even after a long run."
        text = f"**Attention** is almost uniform ({numbers}), {usual}{use}"
        quiet = step < LONG and not follows
        return Verdict(light="green" if quiet else "amber", text=text, remedy=noisy if follows else "", early=quiet)
    if follows:
        text = f"**Attention** follows brightness ({numbers}): it may reflect density rather than relevance.{use}"
        return Verdict(light="amber", text=text, remedy=noisy)
    return Verdict(light="green", text=f"**Attention** is neither uniform nor a proxy for brightness ({numbers}).{use}")


def judge_scans(scans: int, patients: int, copies: Sequence[Sequence[str]]) -> Verdict:
    """Whether there is enough to learn from; `copies`: groups of scans with the same voxels."""
    spare = sum(len(group) - 1 for group in copies)
    if scans - spare <= 1:
        why = f"{scans} scans that are copies of one another" if spare else "one scan"
        text = f"**Scans**: the store holds only {why}. The encoder memorises it and will not generalise."
        return Verdict(light="red", text=text, remedy="Add scans of more patients to the store.", key="one-scan")
    if spare:
        named = "; ".join(" = ".join(group) for group in copies[:3]) + ("; ..." if len(copies) > 3 else "")
        copies_of = "is a copy of another scan" if spare == 1 else "are copies of other scans"
        text = (
            f"**Scans**: {spare} of {scans} {copies_of} ({named}). Copies count twice in training, and two patient IDs may "
            "belong to one person."
        )
        remedy = "Remove the copies (dagman store remove), or check the export that they came from."
        return Verdict(light="red" if spare > scans / 2 else "amber", text=text, remedy=remedy, key="copies")
    if patients == 1:
        text = f"**Scans**: all {scans} are from one patient. The encoder will overfit to this patient."
        return Verdict(light="amber", text=text, remedy="Add scans of more patients to the store.", key="one-patient")
    return Verdict(light="green", text=f"**Scans**: {scans} of {count_noun(patients, 'patient')}, none a copy of another.")


def judge_waiting(shares: Sequence[float]) -> Verdict:
    """Whether the machine waits for data; the first step, which starts the loader, does not count."""
    if len(shares) < _FEW_STEPS:
        text = f"**Data**: too few steps ({len(shares)}) to measure the time spent waiting for data."
        return Verdict(light="green", text=text, early=True)
    share = sum(shares[1:]) / len(shares[1:])
    text = f"**Data**: {share:.0%} of the time is spent waiting for data (limit {WAITING:.0%})."
    if share > WAITING:
        return Verdict(
            light="amber", text=text, remedy="Increase `train.workers`, or put the store on a faster disk.", key="waiting"
        )
    return Verdict(light="green", text=text)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
