"""Reads LIDC-IDRI's XML: what each reader marked in one CT.

A file holds up to four reading sessions, one per reader. Readers outlined nodules of 3 mm or more slice by slice and rated them
(`characteristics`). A smaller nodule is a single point without ratings, and a finding that is not a nodule is a `nonNodule`.
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
MAX_DEPTH = 32
"""Deepest nesting of XML elements that is accepted; a reading has 6 levels. [ours]"""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A closed outline on one slice."""

    instance_uid: str
    "SOPInstanceUID of the slice."
    height_mm: float
    "The slice's z coordinate."
    included: bool
    "False for the outline of a hole."
    points: np.ndarray
    "N 2: column and row of each pixel of the outline."


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One nodule as outlined and rated by one reader; `reader` counts from 0."""

    reader: int
    name: str
    outlines: tuple[Outline, ...]
    ratings: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Message:
    """Everything that the readers marked in one CT."""

    path: Path
    series_uid: str
    readers: int
    annotations: tuple[Annotation, ...]
    small: int
    "Number of marks of nodules below 3 mm."
    others: int
    "Number of marks of findings that are not nodules."


class _PlainTree(ET.TreeBuilder):
    """Builds an element tree and rejects a DOCTYPE, which LIDC's files never have: it could declare entities that expand without
    limit or refer to other files."""

    depth = 0

    def start(self, tag: str, attrs: dict[Any, Any], /) -> ET.Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"elements are nested more than {MAX_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which a LIDC reading never has")


def read_message(path: Path) -> Message | None:
    """Read the annotation file of one CT; return None for XML of a different kind.

    Raises:
        TableError: if the file is not XML, or a required element is missing or invalid.
    """
    try:
        root = ET.parse(path, parser=ET.XMLParser(target=_PlainTree())).getroot()
    except (ET.ParseError, OSError, ValueError) as error:
        raise TableError(f"cannot be read as XML ({error})", where=path, do="Download it again") from error
    if root.tag.rpartition("}")[2] != "LidcReadMessage":
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
        # Both 0 and an empty element mean "not rated".
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
