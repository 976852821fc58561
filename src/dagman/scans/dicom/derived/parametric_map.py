"""A map of numbers over a scan, such as attention, as a DICOM Parametric Map that refers to its series; needs highdicom."""

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
    """Write numbers without a unit (X Y Z on the grid of the series as dagman reads it) as float32, a frame for each slice.

    meaning: what a value is, in at most 64 letters. description: of the new series. window: the values shown darkest and brightest.
    files, identified: see `write_derived`. Raises MissingExtraError without highdicom, ScanError when the source does not fit.
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
        made = highdicom.pm.ParametricMap(
            source_images=list(sources),
            pixel_array=frames.astype(np.float32),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            window_center=(low + high) / 2,
            window_width=high - low,
            content_label="MAP",
            content_description=meaning[:64],
            # Empty would do for the standard; dcmqi warns.
            content_creator_name=NAME,
            series_description=description,
            **describe_equipment(sources[0]),
        )
        # The standard leaves it to the writer; dcmqi, and with it Slicer's reader, ends with a fault where it is absent.
        made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_describe_anatomy(highdicom)]
        _order_frames(made)
        return made

    write_derived(path, values, files, build, kind="a Parametric Map", identified=identified)


def _order_frames(made: Any) -> None:
    """Order frames by their places along the slices' normal: dcmqi takes them for sorted, and would turn the map over."""
    frames = list(made.PerFrameFunctionalGroupsSequence)
    orientation = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(*np.reshape(np.array(orientation, dtype=float), (2, 3)))
    heights = [float(np.dot(normal, np.array(one.PlanePositionSequence[0].ImagePositionPatient, dtype=float))) for one in frames]
    order = np.argsort(heights)
    made.PerFrameFunctionalGroupsSequence = [frames[place] for place in order]
    pixels = np.frombuffer(made.FloatPixelData, dtype=np.float32).reshape(len(frames), -1)
    made.FloatPixelData = pixels[order].tobytes()


def _describe_anatomy(highdicom: Any) -> pydicom.Dataset:
    """Some part of the body: which one, a series need not state."""
    anatomy = pydicom.Dataset()
    anatomy.AnatomicRegionSequence = [highdicom.sr.CodedConcept("123037004", "SCT", "Body structure")]
    anatomy.FrameLaterality = "U"
    return anatomy
