"""Detects spellings that probably mean the same name: "007" and "7", "P1" and "p1", "benign" and "BENIGN"."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")
_NUMBER = re.compile(r"([+-]?)0*(\d+?)(?:\.(\d*?)0*)?")


def find_alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group names that differ only in leading zeros, case, whitespace, underscores or dashes; return the groups sorted.

    The sign of a number matters: -1 and 1 are different names. So does the position of a separator between digits: 1-12 and
    11-2 are different names as well.

    >>> find_alike(["007", "8", "7", "benign", "BENIGN"])
    [('007', '7'), ('BENIGN', 'benign')]
    """
    by_key: dict[str, set[str]] = defaultdict(set)
    for name in set(names):
        for key in _normalise(name):
            by_key[key].add(name)
    groups: list[set[str]] = []
    for candidates in by_key.values():
        unseparated = {name for name in candidates if len(_split_digits(name)) == 1}
        by_parts: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for name in candidates - unseparated:
            by_parts[_split_digits(name)].add(name)
        # A name without separators ("112") may stand for any of the separated ones ("1-12", "11-2").
        groups += [candidates] if unseparated else list(by_parts.values())
    return sorted(_merge_overlapping([group for group in groups if len(group) > 1]))


def _normalise(name: str) -> set[str]:
    """The normal forms of a name: two names are alike if they share one."""
    text = unicodedata.normalize("NFKC", name).strip().casefold()
    number = _NUMBER.fullmatch(text)
    if number:
        sign, whole, rest = number.groups()
        return {f"{'-' if sign == '-' else ''}{whole}{'.' + rest if rest else ''}"}
    bare = _SEPARATORS.sub("", text)
    if not bare:
        return {text}
    return {_strip_zeros(bare), _SEPARATORS.sub("", _strip_zeros(text))}


def _split_digits(name: str) -> tuple[str, ...]:
    """Split a name at the separators that have a digit on both sides."""
    text = _strip_zeros(unicodedata.normalize("NFKC", name).strip().casefold())
    return tuple(_SEPARATORS.sub("", part) for part in re.split(r"(?<=\d)[\s_\-\u2010-\u2015\u2212]+(?=\d)", text))


def _strip_zeros(text: str) -> str:
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def _merge_overlapping(groups: list[set[str]]) -> list[tuple[str, ...]]:
    merged: list[set[str]] = []
    for group in groups:
        disjoint = [other for other in merged if not other & group]
        merged = [*disjoint, group.union(*(other for other in merged if other & group))]
    return [tuple(sorted(group)) for group in merged]
