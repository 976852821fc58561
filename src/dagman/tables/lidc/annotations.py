"""LIDC-IDRI's XML: what each reader of one CT marked.

A file holds up to four reading sessions, one a reader. A reader outlined nodules of 3 mm and more slice by slice and rated them
(`characteristics`); smaller ones are one point without ratings; what was seen and is not a nodule is a `nonNodule`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dagman.errors import TableError

TRAITS = {
    "malignancy": "malignancy",
    "subtlety": "subtlety",
    "internalStructure": "internal_structure",
    "calcification": "calcification",
    "sphericity": "sphericity",
    "margin": "margin",
    "lobulation": "lobulation",
    "spiculation": "spiculation",
    "texture": "texture",
}
"""Names of the ratings (whole numbers from 1 to 5 or 6) in the XML, and in our tables."""
DEEPEST = 32
"""Elements in one another that are read; a reading has 6. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A closed line on one slice: `points` N 2 (column, row); `included` False cuts a hole. `height_mm` is the slice's z."""

    instance_uid: str
    height_mm: float
    included: bool
    points: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One nodule as one reader outlined and rated it; `reader` counts from 0."""

    reader: int
    name: str
    outlines: tuple[Outline, ...]
    ratings: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Message:
    """All that was marked in one CT; `small` and `others` count marks of nodules below 3 mm and of findings other than nodules."""

    path: Path
    series_uid: str
    readers: int
    annotations: tuple[Annotation, ...]
    small: int
    others: int


class _PlainTree(ET.TreeBuilder):
    """Builds a tree of elements alone: what could grow, or lead to other files, is declared in a DOCTYPE, and LIDC's has none."""

    depth = 0

    def start(self, tag: str, attrs: dict[Any, Any], /) -> ET.Element:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"elements are nested {DEEPEST} deep or more")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which a LIDC reading never has")


def read_message(path: Path) -> Message | None:
    """Read an annotation file of a CT; None for XML of another kind.

    Raises TableError when the file is no XML or lacks what it must have.
    """
    try:
        root = ET.parse(path, parser=ET.XMLParser(target=_PlainTree())).getroot()
    except (ET.ParseError, OSError, ValueError) as error:
        raise TableError(f"cannot be read as XML ({error})", where=path, do="Download it again") from error
    if _bare_name(root) != "LidcReadMessage":
        return None
    uid = _find_text(root, ".//{*}SeriesInstanceUid") or _find_text(root, ".//{*}SeriesInstanceUID")
    if not uid:
        raise TableError("names no series (SeriesInstanceUid)", where=path, do="Download it again")
    sessions = root.findall("{*}readingSession")
    annotations: list[Annotation] = []
    small = 0
    for reader, session in enumerate(sessions):
        for node in session.findall("{*}unblindedReadNodule"):
            try:
                annotation = _read_annotation(node, reader)
            except (TypeError, ValueError) as error:
                name = _find_text(node, "{*}noduleID")
                raise TableError(f"nodule {name!r} of reader {reader + 1}: {error}", where=path, do="Download it again") from error
            if "malignancy" in annotation.ratings and annotation.outlines:
                annotations.append(annotation)
            else:
                small += 1
    others = sum(len(session.findall("{*}nonNodule")) for session in sessions)
    return Message(path=path, series_uid=uid, readers=len(sessions), annotations=tuple(annotations), small=small, others=others)


def _read_annotation(node: ET.Element, reader: int) -> Annotation:
    ratings = {}
    for name, ours in TRAITS.items():
        text = _find_text(node, f"{{*}}characteristics/{{*}}{name}")
        # 0 and an empty cell both stand for "not rated".
        if text and int(text) > 0:
            ratings[ours] = int(text)
    return Annotation(
        reader=reader,
        name=_find_text(node, "{*}noduleID"),
        outlines=tuple(_read_outline(part) for part in node.findall("{*}roi")),
        ratings=ratings,
    )


def _read_outline(node: ET.Element) -> Outline:
    points = [[int(_find_text(edge, f"{{*}}{axis}Coord")) for axis in "xy"] for edge in node.findall("{*}edgeMap")]
    if not points:
        raise ValueError("an outline without points")
    return Outline(
        instance_uid=_find_text(node, "{*}imageSOP_UID"),
        height_mm=float(_find_text(node, "{*}imageZposition")),
        included=_find_text(node, "{*}inclusion").upper() != "FALSE",
        points=np.array(points, dtype=np.int64),
    )


def _find_text(node: ET.Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _bare_name(node: ET.Element) -> str:
    return node.tag.rpartition("}")[2]
