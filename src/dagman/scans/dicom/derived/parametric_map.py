"""Writes a map of numbers over a scan, such as attention, as a DICOM Parametric Map; needs highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from dagman.scans.dicom.derived.sources import NAME, describe_equipment, import_highdicom, write_derived


def write_parametric_map(
    path: str | Path,
    values: NDArray[np.float32],
    files: Sequence[Path],
    *,
    meaning: str,
    description: str,
    window: tuple[float, float],
    identified: bool = False,
) -> None:
    """Write numbers without a unit as float32, with one frame per slice.

    Args:
        path: the output file.
        values: X Y Z, on the grid of the series as dagman reads it.
        files: see `write_derived`.
        meaning: what a value means, in at most 64 characters.
        description: description of the new series.
        window: the values shown darkest and brightest.
        identified: see `write_derived`.

    Raises:
        MissingExtraError: if highdicom is not installed.
        ScanError: if the values do not fit the series.
    """
    low, high = window

    def build(sources: Sequence[pydicom.FileDataset], frames: NDArray) -> Any:
        from pydicom.sr.codedict import codes

        highdicom = import_highdicom()
        mapping = highdicom.pm.RealWorldValueMapping(
            lut_label="VALUE",
            lut_explanation=meaning[:64],
            unit=codes.UCUM.NoUnits,
            value_range=(float(frames.min()), float(frames.max())),
            slope=1.0,
            intercept=0.0,
        )
        pm = highdicom.pm.ParametricMap(
            source_images=list(sources),
            pixel_array=frames.astype(np.float32),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            window_center=(low + high) / 2,
            window_width=high - low,
            content_label="MAP",
            content_description=meaning[:64],
            # The standard allows an empty name, but dcmqi warns about it.
            content_creator_name=NAME,
            series_description=description,
            **describe_equipment(sources[0]),
        )
        # Optional in the standard, but dcmqi, and so Slicer's reader, fails without it.
        pm.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_describe_anatomy(highdicom)]
        _order_frames(pm)
        return pm

    write_derived(path, values, files, build, kind="a Parametric Map", identified=identified)


def _order_frames(pm: Any) -> None:
    """Sort frames by their position along the slices' normal: dcmqi assumes this order, and would otherwise flip the map."""
    frames = list(pm.PerFrameFunctionalGroupsSequence)
    orientation = pm.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(*np.reshape(np.array(orientation, dtype=float), (2, 3)))
    positions = [np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float) for frame in frames]
    order = np.argsort(np.array(positions) @ normal)
    pm.PerFrameFunctionalGroupsSequence = [frames[index] for index in order]
    pixels = np.frombuffer(pm.FloatPixelData, dtype=np.float32).reshape(len(frames), -1)
    pm.FloatPixelData = pixels[order].tobytes()


def _describe_anatomy(highdicom: Any) -> pydicom.Dataset:
    """An unspecific body part, since a series need not state which one it shows."""
    anatomy = pydicom.Dataset()
    anatomy.AnatomicRegionSequence = [highdicom.sr.CodedConcept("123037004", "SCT", "Body structure")]
    anatomy.FrameLaterality = "U"
    return anatomy
