"""Writes label maps as DICOM Segmentation objects (SEG), which refer to the segmented series; needs highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from dagman.scans.dicom.derived.sources import NAME, describe_equipment, import_highdicom, write_derived
from dagman.scans.dicom.headers import read_data_set
from dagman.scans.dicom.values import read_text
from dagman.scans.faults import explain_faults
from dagman.scans.structures.colors import color_structures, split_color


def write_segments(
    path: str | Path, labels: NDArray, names: Mapping[int, str], files: Sequence[Path], *, identified: bool = False
) -> None:
    """Write labels as a binary SEG, with one segment per entry of `names`, in the colours used on dagman's pages.

    Args:
        path: the output file.
        labels: X Y Z, on the grid of the series as dagman reads it.
        names: names of the label values.
        files: see `write_derived`.
        identified: see `write_derived`.

    Raises:
        MissingExtraError: if highdicom is not installed.
        ScanError: if the labels do not fit the series.
    """
    values = sorted(names)

    def build(sources: Sequence[pydicom.FileDataset], frames: NDArray) -> Any:
        return _build_segmentation(sources, np.isin(frames, values) * frames, values, names)

    write_derived(path, labels, files, build, kind="a DICOM SEG", identified=identified)


def names_its_patient(path: Path) -> bool:
    """Return whether a SEG identifies its patient; raises ScanError if it cannot be read."""
    with explain_faults("cannot be read", where=path, do="Delete it, and repeat the command"), open(path, "rb") as file:
        data = read_data_set(file, stop_before_pixels=True, specific_tags=["PatientIdentityRemoved"])
        return read_text(data, "PatientIdentityRemoved") != "YES"


def _build_segmentation(
    sources: Sequence[pydicom.Dataset], frames: NDArray, values: Sequence[int], names: Mapping[int, str]
) -> Any:
    from pydicom.sr.codedict import codes

    from dagman import __version__

    highdicom = import_highdicom()

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=NAME, version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=names[value][:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*split_color(color)),
        )
        for number, (value, color) in enumerate(zip(values, color_structures(len(values)), strict=True), start=1)
    ]
    pixels = np.stack([frames == value for value in values], axis=-1).astype(np.uint8)
    return highdicom.seg.Segmentation(
        source_images=list(sources),
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_description="Segmentation by dagman; not for diagnosis",
        **describe_equipment(sources[0]),
        omit_empty_frames=bool(pixels.any()),
    )
