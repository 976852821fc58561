"""Compare two models over several seeds: means, spread, and whether their difference exceeds the variation between seeds."""

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
    """Comparison of a pretrained with a randomly initialised network on one question, with one value per seed.

    Attributes:
        question: The question in words.
        measure: The measure in words.
        pretrained: Value of the pretrained network for each seed.
        fresh: Value of the randomly initialised network for each seed, paired with `pretrained`.
        rising: Whether higher is better.
        others: Name and value of baselines that need no network.
    """

    question: str
    measure: str
    pretrained: tuple[float, ...]
    fresh: tuple[float, ...]
    rising: bool = True
    others: tuple[tuple[str, float], ...] = ()

    @property
    def difference(self) -> float:
        """Mean over seeds of pretrained minus randomly initialised."""
        return float(np.mean(np.subtract(self.pretrained, self.fresh)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the difference, by Student's t of the paired differences; None with a single seed."""
        gains = np.subtract(self.pretrained, self.fresh)
        if len(gains) < 2:
            return None
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(gains) - 1) * np.std(gains, ddof=1) / np.sqrt(len(gains)))
        return self.difference - half, self.difference + half

    @property
    def outcome(self) -> Outcome:
        """Whether pretraining improved the measure; "open" if the interval contains 0 or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "open"
        return "better" if (self.difference > 0) == self.rising else "worse"

    @property
    def best_other(self) -> str | None:
        """Name of the best of `others` if it is better than the pretrained network's mean; otherwise None."""
        sign = 1 if self.rising else -1
        name, value = max(self.others, key=lambda other: sign * other[1], default=("", 0.0))
        return name if name and sign * value > sign * float(np.mean(self.pretrained)) else None

    def to_values(self) -> dict[str, object]:
        """Return the comparison as plain values for JSON."""
        return {**asdict(self), "difference": self.difference, "interval": self.interval, "outcome": self.outcome}


def describe_values(values: Sequence[float]) -> str:
    """Format the mean ± standard deviation over seeds; with a single seed, only the value."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean
