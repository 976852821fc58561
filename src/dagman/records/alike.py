"""Names that are most likely one: "007" and "7", "P1" and "p1", "benign" and "BENIGN"."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_BREAKS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")
_NUMBER = re.compile(r"([+-]?)0*(\d+?)(?:\.(\d*?)0*)?")


def find_alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that differ only in leading zeros, case, blanks, underscores or dashes, in order.

    A number's sign counts: -1 and 1 differ. So do names whose numbers are divided at other places, such as 1-12 and 11-2.

    >>> find_alike(["007", "8", "7", "benign", "BENIGN"])
    [('007', '7'), ('BENIGN', 'benign')]
    """
    places: dict[str, set[str]] = defaultdict(set)
    for name in set(names):
        for key in _find_keys(name):
            places[key].add(name)
    groups: list[set[str]] = []
    for found in places.values():
        whole = {name for name in found if len(_divide(name)) == 1}
        divided: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for name in found - whole:
            divided[_divide(name)].add(name)
        # A name without breaks may be any of the divided ones.
        groups += [found] if whole else list(divided.values())
    return sorted(_join([group for group in groups if len(group) > 1]))


def _find_keys(name: str) -> set[str]:
    text = unicodedata.normalize("NFKC", name).strip().casefold()
    number = _NUMBER.fullmatch(text)
    if number:
        sign, whole, rest = number.groups()
        return {f"{'-' if sign == '-' else ''}{whole}{'.' + rest if rest else ''}"}
    bare = _BREAKS.sub("", text)
    if not bare:
        return {text}
    return {_strip_zeros(bare), _BREAKS.sub("", _strip_zeros(text))}


def _divide(name: str) -> tuple[str, ...]:
    """The parts of a name between breaks that have a digit on both sides."""
    text = _strip_zeros(unicodedata.normalize("NFKC", name).strip().casefold())
    return tuple(_BREAKS.sub("", part) for part in re.split(r"(?<=\d)[\s_\-\u2010-\u2015\u2212]+(?=\d)", text))


def _strip_zeros(text: str) -> str:
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def _join(groups: list[set[str]]) -> list[tuple[str, ...]]:
    joined: list[set[str]] = []
    for group in groups:
        apart = [one for one in joined if not one & group]
        joined = [*apart, group.union(*(one for one in joined if one & group))]
    return [tuple(sorted(group)) for group in joined]
