"""Two models compared over seeds: means, spread, and whether their difference is more than the seeds' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy import stats

Outcome = Literal["better", "worse", "open"]
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class SeedComparison:
    """One question put to a pretrained and to a fresh network, once a seed.

    question, measure: in words. pretrained, fresh: a value a seed, paired. rising: whether more is better.
    others: what needs no network, by name.
    """

    question: str
    measure: str
    pretrained: tuple[float, ...]
    fresh: tuple[float, ...]
    rising: bool = True
    others: tuple[tuple[str, float], ...] = ()

    @property
    def difference(self) -> float:
        """Pretrained minus fresh, the mean over the seeds."""
        return float(np.mean(np.subtract(self.pretrained, self.fresh)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the difference: Student's t of the paired differences; None for one seed, which has no spread."""
        gains = np.subtract(self.pretrained, self.fresh)
        if len(gains) < 2:
            return None
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(gains) - 1) * np.std(gains, ddof=1) / np.sqrt(len(gains)))
        return self.difference - half, self.difference + half

    @property
    def outcome(self) -> Outcome:
        """Whether pretraining made it better or worse; "open" where the interval holds 0, or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "open"
        return "better" if (self.difference > 0) == self.rising else "worse"

    @property
    def best_other(self) -> str | None:
        """The best of `others`, where it does better than the pretrained network on average."""
        sign = 1 if self.rising else -1
        name, value = max(self.others, key=lambda other: sign * other[1], default=("", 0.0))
        return name if name and sign * value > sign * float(np.mean(self.pretrained)) else None

    def to_values(self) -> dict[str, object]:
        """The comparison as plain values, for a JSON file."""
        return {**asdict(self), "difference": self.difference, "interval": self.interval, "outcome": self.outcome}


def describe_values(values: Sequence[float]) -> str:
    """The mean with the standard deviation over seeds; of one seed the value alone."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean
