"""Few-shot subsets by name: shares of the training patients, and counts of labelled patients a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dagman.errors import TaskError
from dagman.records.counts import count_noun


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A part of the training patients that is labelled: a share, or a count a class; drawn `draws` times."""

    name: str
    share: float | None = None
    per_class: int | None = None
    draws: int = 1


def list_subsets(
    shares: Sequence[float], per_class: Sequence[int], draws: int, largest_count: int
) -> tuple[list[Subset], list[str]]:
    """The subsets asked for, counts before shares, smallest first; and a note on counts beyond `largest_count`, left out.

    Raises TaskError for a share or count that cannot be, or when nothing is left.
    """
    counts = sorted(set(per_class))
    for share in shares:
        if not 0 < share <= 1:
            raise TaskError(f"a share of {share * 100:g} % was asked for", do="Give more than 0, at most 100")
    if counts and counts[0] < 1:
        raise TaskError(f"{counts[0]} patients a class were asked for", do="Ask for 1 or more")
    possible = [count for count in counts if count <= largest_count]
    subsets = [Subset(name=f"k={count}", per_class=count, draws=draws) for count in possible]
    # All labels are one draw.
    subsets += [Subset(name=f"{share * 100:g}%", share=share, draws=1 if share == 1 else draws) for share in sorted(set(shares))]
    notes = [
        f"{count_noun(count, 'patient a class is', 'patients a class are')} left out: in some fold a class has "
        f"{count_noun(largest_count, 'training patient')}"
        for count in counts
        if count not in possible
    ]
    if not subsets:
        raise TaskError("; ".join(notes) or "no share of labels was asked for", do="Give --shares, or a smaller --per-class")
    return subsets, notes
