"""Decides from its values whether a scan can be used: values in Hounsfield units have a typical distribution.

Air is near -1000, fat from -200 to -20, and other soft tissue below about 300. A crop may contain no air, or only lung, so either
air or tissue is sufficient evidence; values that merely span a range (0..255, 0..4095, labels) show neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dagman.scans.scan import Modality, Scan

LOWEST_HU = -1024
"""Scanners write lower values (-2000, -3024) only outside their round field of view, as padding."""

HIGHEST_TISSUE_HU = 4000
"""Higher than bone, contrast agent and enamel; only metal is denser. The range of 12-bit scanners ends at 3071."""

_MOST_BEYOND, _NOTED_BEYOND = 0.05, 0.001
"""Shares of voxels above 4000 HU that are refused and noted. Metal in a patient stays below the former."""

_LEAST_TISSUE = 0.001
"""Smallest share of voxels above -500 HU; the minimum over 203 real CTs, including 20 mm crops of lung, is 0.024."""

_LEAST_CORRELATION = 0.15
"""Smallest correlation of neighbouring voxels; the minimum over the same scans, along their best axis, is 0.84, and noise has 0."""

_CORRELATED_SIDE, _FEWEST_PAIRS = 64, 500
"""Side in voxels of the central block in which neighbours are compared, and the smallest number of pairs to draw a conclusion."""

_HIGHEST_HU = 65535
"""Higher than the values of any scanner; metal reaches 30000."""

_SMALLEST_MM, _LARGEST_MM = 5.0, 5000.0
"""Limits for the longest edge of a scan: below any crop of a patient, and above the travel of any table."""

_CLOSEST_MM = 0.01
"""A smaller spacing comes from a damaged header: it is a tenth of the resolution of clinical scanners."""

_MOST_LABELS, _LEAST_EQUAL = 1000, 0.9
"""Largest number of different values in a label map, and smallest share of equal neighbours outside its background."""

_LABEL_MAP = "appears to be a label map; give it as a mask, not as a scan"

_SAMPLED = 4_000_000
"""Shares are computed from about this many evenly spread voxels; minimum and maximum from all."""


@dataclass(frozen=True, kw_only=True)
class HuEvidence:
    """The distribution of a scan's values, as evidence for Hounsfield units; all shares are of all voxels."""

    minimum: float
    maximum: float
    air_share: float
    "Below -300 HU: air and lung."
    fat_share: float
    "-200 to -20 HU."
    soft_tissue_share: float
    "-200 to 300 HU."
    negative_share: float
    "-1000 to -30 HU, which excludes padding."
    raw_tissue_share: float
    "900 to 1180, as a share of the voxels from 200 on: the range of tissue if 1024 was never subtracted."
    lowest_share: float
    "-700 HU and below."
    highest_share: float
    "700 HU and above."
    muscle_share: float
    "20 to 80 HU."
    negated_muscle_share: float
    "-80 to -20 HU."
    bone_share: float
    "300 to 700 HU."
    dense_bone_share: float
    "1100 to 1900 HU."
    tissue_share: float
    "Above -500 HU: everything except air and lung."
    beyond_share: float
    "Above 4000 HU."
    neighbour_correlation: float
    "Correlation of adjacent voxels along the axis where it is highest."

    @property
    def has_air(self) -> bool:
        """Whether at least a thousandth of the voxels is air or lung, with values near -1000 HU."""
        return self.minimum <= -600 and self.air_share >= 0.001

    @property
    def has_tissue(self) -> bool:
        """Whether at least half of the voxels are soft tissue, and enough of them are fat."""
        return self.soft_tissue_share >= 0.5 and self.fat_share >= 0.005

    @property
    def is_raw(self) -> bool:
        """Whether only padding is negative, and tissue is near 1024 instead of 0."""
        return self.negative_share < 0.001 and self.raw_tissue_share >= 0.3 and self.maximum > 1000

    @property
    def is_negated(self) -> bool:
        """Whether the sign is flipped: many voxels are near +1000, few near -1000, and the former are not bone, metal or padding.

        Bone would also have values above 1100, or mostly values below 700 if it was clipped. In a scan with metal or padding,
        muscle is at 50 rather than at -50. MR, which has no negative values, does not count as negated.
        """
        has_high_end = self.highest_share >= max(0.05, 5 * self.lowest_share) and self.negative_share >= 0.001
        is_bone = self.dense_bone_share > 0.02 * self.highest_share or self.bone_share > 2 * self.highest_share
        return has_high_end and not is_bone and self.muscle_share < 3 * self.negated_muscle_share

    @property
    def is_hu(self) -> bool:
        """Whether the values by themselves show that the scan is CT in HU."""
        return not (self.is_raw or self.is_negated) and self.maximum <= _HIGHEST_HU and (self.has_air or self.has_tissue)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a scan can be used."""

    accepted: bool
    reason: str = ""
    "Why it cannot be used and what to do; empty if accepted."
    notes: tuple[str, ...] = ()
    evidence: HuEvidence | None = None


def judge_scan(scan: Scan, evidence: HuEvidence | None = None) -> Verdict:
    """Accept CT in HU, and MR if the file or the user states that it is MR; refuse everything else, with what to do.

    Args:
        scan: the scan.
        evidence: the distribution of its voxels, if known (from `reading.read_measured`), so that it is not computed again.
    """
    notes = scan.notes
    if min(scan.shape) < 4:
        notes = (*notes, f"very thin: {min(scan.shape)} slices")
    evidence = measure_hu(scan.voxels) if evidence is None else evidence
    if evidence.minimum == evidence.maximum:
        reason = f"all voxels are {evidence.minimum:.4g}: exclude it, or export it again"
        return Verdict(accepted=False, reason=reason, notes=notes, evidence=evidence)
    extent = max(size * spacing for size, spacing in zip(scan.shape, scan.spacing, strict=True))
    if not _SMALLEST_MM <= extent <= _LARGEST_MM:
        reason = f"is {extent:.3g} mm long, so its spacing cannot be in mm: correct the header"
        return Verdict(accepted=False, reason=reason, notes=notes, evidence=evidence)
    if min(scan.spacing) < _CLOSEST_MM:
        reason = f"its voxels are {min(scan.spacing):.3g} mm apart along one axis: correct the header"
        return Verdict(accepted=False, reason=reason, notes=notes, evidence=evidence)
    if scan.modality == "MR":
        # Unlike HU, the range of values does not distinguish MR images from label maps, but the flat areas of labels do.
        reason = _LABEL_MAP if is_label_map(scan.voxels) else ""
        return Verdict(accepted=not reason, reason=reason, notes=notes, evidence=evidence if reason else None)
    # If a tag or the user states CT, less evidence is sufficient: a crop inside an organ contains neither air nor fat.
    is_wrong = evidence.is_raw or evidence.is_negated
    plausible = evidence.is_hu or (not is_wrong and evidence.minimum < 0 and evidence.soft_tissue_share >= 0.5)
    if scan.modality == "CT" and plausible and evidence.maximum - evidence.minimum >= 50:
        if evidence.beyond_share >= _NOTED_BEYOND:
            notes = (*notes, f"{evidence.beyond_share:.1%} of the voxels are above {HIGHEST_TISSUE_HU} HU (metal?)")
        reason = _find_emptiness(evidence)
        return Verdict(accepted=not reason, reason=reason, notes=notes, evidence=evidence)
    return Verdict(accepted=False, reason=_explain(scan, evidence), notes=notes, evidence=evidence)


def _find_emptiness(evidence: HuEvidence) -> str:
    """Return why values in the range of CT cannot show a patient, or ""."""
    if evidence.beyond_share > _MOST_BEYOND:
        what = f"{evidence.beyond_share:.1%} of its voxels are above {HIGHEST_TISSUE_HU} HU, more than tissue or metal explain"
        return f"{what}: correct its rescaling or padding value, or exclude it"
    if evidence.tissue_share < _LEAST_TISSUE:
        return "contains only air (no voxels of tissue): exclude it"
    if evidence.neighbour_correlation < _LEAST_CORRELATION:
        what = f"neighbouring voxels are uncorrelated (correlation {evidence.neighbour_correlation:.2f})"
        return f"is noise, {what}: exclude it, or export it again"
    return ""


def is_label_map(voxels: NDArray) -> bool:
    """Return whether voxels (X Y Z) seem to be labels: non-negative whole numbers in flat areas on a background.

    The background is the most frequent value. Outside it, at least 98 % of neighbouring voxels are equal in label maps, and at most
    6 % in MR images, including 8-bit images with the skull removed.
    """
    if voxels.min() < 0 or not (np.issubdtype(voxels.dtype, np.integer) or np.array_equal(voxels, np.rint(voxels))):
        return False
    values, counts = np.unique(voxels, return_counts=True)
    if len(values) > _MOST_LABELS:
        return False
    along = np.moveaxis(voxels, int(np.argmax(voxels.shape)), 0)
    first, second = along[:-1], along[1:]
    background = values[np.argmax(counts)]
    is_foreground = (first != background) & (second != background)
    pairs = int(np.count_nonzero(is_foreground))
    return pairs > 0 and bool(np.count_nonzero(is_foreground & (first == second)) >= _LEAST_EQUAL * pairs)


def judge_modality(evidence: HuEvidence) -> Modality:
    """Return "CT" if the values are HU, otherwise "other", for files that do not state a modality (NIfTI, NRRD, MetaImage)."""
    return "CT" if evidence.is_hu else "other"


def measure_hu(voxels: NDArray) -> HuEvidence:
    """Measure the distribution of the values of voxels, of any shape."""
    step = max(1, int(np.ceil((voxels.size / _SAMPLED) ** (1 / voxels.ndim))))
    # Copied once, since each count below would otherwise stride through the memory of the whole scan.
    sample = voxels[tuple(slice(step // 2 if size > step // 2 else 0, None, step) for size in voxels.shape)].ravel(order="K")
    bright = np.count_nonzero(sample >= 200)
    return HuEvidence(
        minimum=float(voxels.min()),
        maximum=float(voxels.max()),
        air_share=_share(sample < -300),
        fat_share=_share_within(sample, -200, -20),
        soft_tissue_share=_share_within(sample, -200, 300),
        negative_share=_share_within(sample, -1000, -30),
        raw_tissue_share=_share_within(sample, 900, 1180) * sample.size / bright if bright else 0.0,
        lowest_share=_share(sample <= -700),
        highest_share=_share(sample >= 700),
        muscle_share=_share_within(sample, 20, 80),
        negated_muscle_share=_share_within(sample, -80, -20),
        bone_share=_share_within(sample, 300, 700),
        dense_bone_share=_share_within(sample, 1100, 1900),
        tissue_share=_share(sample > -500),
        beyond_share=_share(sample > HIGHEST_TISSUE_HU),
        neighbour_correlation=_correlate_neighbours(voxels),
    )


def _correlate_neighbours(voxels: NDArray) -> float:
    """Return the correlation of adjacent voxels in the middle of the scan, along the axis where it is highest; 1 if unknown."""
    half = _CORRELATED_SIDE // 2
    middle = voxels[tuple(slice(max(0, size // 2 - half), size // 2 + half) for size in voxels.shape)]
    # Clipped, since a few voxels of metal or padding would otherwise dominate.
    block = middle.astype(np.float32).clip(LOWEST_HU, 2000)
    correlations = []
    for axis in range(block.ndim):
        along = np.moveaxis(block, axis, 0)
        first, second = along[:-1].ravel(), along[1:].ravel()
        if first.size < _FEWEST_PAIRS:
            continue
        first, second = first - first.mean(), second - second.mean()
        variances = float(first @ first) * float(second @ second)
        if variances > 0:
            correlations.append(float(first @ second) / math.sqrt(variances))
    return max(correlations, default=1.0)


def clip_evidence(evidence: HuEvidence) -> HuEvidence:
    """Return the evidence after clipping of padding; the shares stay, since none of them depends on clipping at -1024 HU."""
    return replace(evidence, minimum=max(evidence.minimum, float(LOWEST_HU)), maximum=max(evidence.maximum, float(LOWEST_HU)))


def clip_padding(voxels: NDArray, lowest: float | None = None) -> tuple[NDArray, tuple[str, ...]]:
    """Set all CT voxels below -1024 HU to -1024, in place if they are writable; return the voxels, and a note on how many.

    Such low values are padding outside the scanner's field of view, and would distort every mean.

    Args:
        voxels: CT voxels in HU.
        lowest: minimum of the voxels, if known.
    """
    lowest = float(voxels.min()) if lowest is None else lowest
    if lowest >= LOWEST_HU:
        return voxels, ()
    clipped = voxels if voxels.flags.writeable else voxels.copy(order="K")
    below = 0
    # Plane by plane, in memory order, since temporary arrays of a whole scan would take more time than the computation.
    for plane in clipped.transpose(np.argsort([-abs(stride) for stride in clipped.strides], kind="stable")):
        below += int(np.count_nonzero(plane < LOWEST_HU))
        np.maximum(plane, np.array(LOWEST_HU, dtype=clipped.dtype), out=plane)
    note = f"values down to {lowest:.0f} in {below} of {voxels.size} voxels were set to {LOWEST_HU} HU"
    return clipped, (note,)


def _share(marked: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(marked) / marked.size)


def _share_within(voxels: NDArray, low: float, high: float) -> float:
    return _share((voxels >= low) & (voxels <= high))


def _explain(scan: Scan, evidence: HuEvidence) -> str:
    values = f"values {evidence.minimum:.4g} to {evidence.maximum:.4g}"
    if scan.modality == "other" and evidence.is_hu:
        return f"could be HU ({values}), but the file states another modality: pass --modality ct if it is CT"
    if evidence.is_raw:
        remedy = "subtract 1024, or convert with the rescale intercept"
        return f"appears to hold raw values, 1024 too high ({values}, tissue near 1024): {remedy}"
    if evidence.is_negated:
        return f"appears to hold HU with the sign flipped ({values}, air at the high end): multiply by -1"
    is_small = scan.voxels.dtype == np.int16 and evidence.minimum >= 0 and evidence.maximum < 150
    if is_small or is_label_map(scan.voxels):
        return f"not in HU ({values}, whole numbers only): {_LABEL_MAP}"
    if evidence.maximum - evidence.minimum < 50:
        return f"not in HU ({values}): appears to be rescaled already; give the scan in HU"
    remedy = "give the scan in HU" if scan.modality == "CT" else "pass --modality mr if it is MR, otherwise give the scan in HU"
    return f"not in HU ({values}; CT contains air near -1000 or fat near -100): {remedy}"
