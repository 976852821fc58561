"""Whether a scan can be used, judged from its values: Hounsfield units leave marks that few other numbers do.

Air lies near -1000, fat from -200 to -20, other soft tissue up to about 300. Crops may hold no air, or only lung, so one
of two marks is enough; numbers that only resemble a range (0..255, 0..4095, labels) have neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dagman.scans.scan import Modality, Scan

LOWEST_HU = -1024
"""Scanners write lower values (-2000, -3024) only outside their round field of view: padding, not tissue."""

HIGHEST_TISSUE_HU = 4000
"""More than bone, contrast and enamel; only metal is denser, and scanners of 12 bits end at 3071."""

_MOST_BEYOND, _NOTED_BEYOND = 0.05, 0.001
"""Shares of voxels above 4000 HU: refused, and noted. Metal in a patient is less than the first."""

_LEAST_TISSUE = 0.001
"""Share of voxels above -500 HU: 0.024 is the least of 203 real CTs, crops of 20 mm in the lung among them."""

_LEAST_CORRELATION = 0.15
"""Between neighbouring voxels: 0.84 is the least of the same scans along their best axis; noise has 0."""

_CORRELATED_SIDE, _FEWEST_PAIRS = 64, 500
"""Voxels along a side of the middle block in which neighbours are compared; fewer pairs than this say nothing."""

_HIGHEST_HU = 65535
"""More than any scanner's numbers can hold; metal reaches 30000."""

_SMALLEST_MM, _LARGEST_MM = 5.0, 5000.0
"""Longest edge of a scan: less than any crop of a patient, more than any table's travel."""

_CLOSEST_MM = 0.01
"""Voxels closer together than this, along any axis, come from a damaged header: a tenth of what clinical scanners resolve."""

_MOST_LABELS, _LEAST_EQUAL = 1000, 0.9
"""Different values that a label map may hold, and the share of neighbours outside its background that have one label."""

_LABEL_MAP = "appears to be a label map; give it as a mask, not as a scan"

_SAMPLED = 4_000_000
"""Shares are counted on about this many voxels, evenly spread; minimum and maximum on all."""


@dataclass(frozen=True, kw_only=True)
class HuEvidence:
    """What speaks for Hounsfield units; each share is of all voxels.

    air: below -300 HU (air, lung). fat: -200 to -20. soft tissue: -200 to 300. negative: -1000 to -30 (padding left out).
    raw tissue: 900 to 1180, among voxels of 200 and more: where tissue lies when 1024 was never subtracted. lowest: -700 and
    less; highest: 700 and more. muscle: 20 to 80; negated muscle: -80 to -20. bone: 300 to 700; dense bone: 1100 to 1900.
    tissue: above -500, anything but air and lung. beyond: above 4000. neighbour correlation: of voxels one step apart, along
    the axis where it is highest.
    """

    minimum: float
    maximum: float
    air_share: float
    fat_share: float
    soft_tissue_share: float
    negative_share: float
    raw_tissue_share: float
    lowest_share: float
    highest_share: float
    muscle_share: float
    negated_muscle_share: float
    bone_share: float
    dense_bone_share: float
    tissue_share: float
    beyond_share: float
    neighbour_correlation: float

    @property
    def has_air(self) -> bool:
        """A thousandth of the voxels is air or lung, and some of it is near -1000."""
        return self.minimum <= -600 and self.air_share >= 0.001

    @property
    def has_tissue(self) -> bool:
        """Half of the voxels is soft tissue, and enough of that is fat."""
        return self.soft_tissue_share >= 0.5 and self.fat_share >= 0.005

    @property
    def is_raw(self) -> bool:
        """Nothing is negative but padding, and tissue lies near 1024 instead of 0."""
        return self.negative_share < 0.001 and self.raw_tissue_share >= 0.3 and self.maximum > 1000

    @property
    def is_negated(self) -> bool:
        """Air lies at the high end: much is near +1000 and little near -1000, and it is neither bone nor metal nor padding.

        Bone would go on above 1100, or lie below 700 for the most part where it was clipped; beside metal and padding muscle
        lies at 50, not at -50. MR, which ends at 0, is not meant.
        """
        much = self.highest_share >= max(0.05, 5 * self.lowest_share) and self.negative_share >= 0.001
        bone = self.dense_bone_share > 0.02 * self.highest_share or self.bone_share > 2 * self.highest_share
        return much and not bone and self.muscle_share < 3 * self.negated_muscle_share

    @property
    def is_hu(self) -> bool:
        """Whether the values alone say that this is CT in HU."""
        return not (self.is_raw or self.is_negated) and self.maximum <= _HIGHEST_HU and (self.has_air or self.has_tissue)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a scan can be used; `reason` says why not and what to do (empty when accepted)."""

    accepted: bool
    reason: str = ""
    notes: tuple[str, ...] = ()
    evidence: HuEvidence | None = None


def judge_scan(scan: Scan, evidence: HuEvidence | None = None) -> Verdict:
    """Accept CT in HU, and MR when the file or the user says that it is MR; refuse the rest, with what to do.

    evidence: of the scan's voxels, as `reading.read_measured` gives it, which spares counting them again.
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
        # No range of values tells an MR image from labels, as HU do; the labels' flat areas tell them.
        reason = _LABEL_MAP if is_label_map(scan.voxels) else ""
        return Verdict(accepted=not reason, reason=reason, notes=notes, evidence=evidence if reason else None)
    # A tag or a user that says CT needs less proof: a crop inside one organ holds neither air nor fat.
    wrong = evidence.is_raw or evidence.is_negated
    plausible = evidence.is_hu or (not wrong and evidence.minimum < 0 and evidence.soft_tissue_share >= 0.5)
    if scan.modality == "CT" and plausible and evidence.maximum - evidence.minimum >= 50:
        if evidence.beyond_share >= _NOTED_BEYOND:
            notes = (*notes, f"{evidence.beyond_share:.1%} of the voxels are above {HIGHEST_TISSUE_HU} HU (metal?)")
        reason = _find_emptiness(evidence)
        return Verdict(accepted=not reason, reason=reason, notes=notes, evidence=evidence)
    return Verdict(accepted=False, reason=_explain(scan, evidence), notes=notes, evidence=evidence)


def _find_emptiness(evidence: HuEvidence) -> str:
    """Why there is no patient in numbers that have CT's range, or nothing."""
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
    """Whether voxels [X, Y, Z] are whole numbers, none negative, in flat areas on a background, as labels of structures are.

    The background is the most frequent value. In label maps 98 % and more of the neighbours outside it are equal; in MR images,
    8-bit ones with the skull removed included, 6 % and less.
    """
    if voxels.min() < 0 or not (np.issubdtype(voxels.dtype, np.integer) or np.array_equal(voxels, np.rint(voxels))):
        return False
    values, counts = np.unique(voxels, return_counts=True)
    if len(values) > _MOST_LABELS:
        return False
    along = np.moveaxis(voxels, int(np.argmax(voxels.shape)), 0)
    one, next_one = along[:-1], along[1:]
    background = values[np.argmax(counts)]
    outside = (one != background) & (next_one != background)
    pairs = int(np.count_nonzero(outside))
    return pairs > 0 and bool(np.count_nonzero(outside & (one == next_one)) >= _LEAST_EQUAL * pairs)


def judge_modality(evidence: HuEvidence) -> Modality:
    """CT when the values are HU, else "other": a NIfTI, NRRD or MetaImage file does not say what it shows."""
    return "CT" if evidence.is_hu else "other"


def measure_hu(voxels: NDArray) -> HuEvidence:
    """Count what speaks for Hounsfield units in voxels of any shape."""
    step = max(1, int(np.ceil((voxels.size / _SAMPLED) ** (1 / voxels.ndim))))
    # Gathered once: every count below would walk the whole scan's memory.
    some = voxels[tuple(slice(step // 2 if size > step // 2 else 0, None, step) for size in voxels.shape)].ravel(order="K")
    bright = np.count_nonzero(some >= 200)
    return HuEvidence(
        minimum=float(voxels.min()),
        maximum=float(voxels.max()),
        air_share=_share(some < -300),
        fat_share=_share_within(some, -200, -20),
        soft_tissue_share=_share_within(some, -200, 300),
        negative_share=_share_within(some, -1000, -30),
        raw_tissue_share=_share_within(some, 900, 1180) * some.size / bright if bright else 0.0,
        lowest_share=_share(some <= -700),
        highest_share=_share(some >= 700),
        muscle_share=_share_within(some, 20, 80),
        negated_muscle_share=_share_within(some, -80, -20),
        bone_share=_share_within(some, 300, 700),
        dense_bone_share=_share_within(some, 1100, 1900),
        tissue_share=_share(some > -500),
        beyond_share=_share(some > HIGHEST_TISSUE_HU),
        neighbour_correlation=_correlate_neighbours(voxels),
    )


def _correlate_neighbours(voxels: NDArray) -> float:
    """Correlation of voxels one step apart in the middle of the scan, along the axis where it is highest; 1 where it is unknown."""
    half = _CORRELATED_SIDE // 2
    middle = voxels[tuple(slice(max(0, size // 2 - half), size // 2 + half) for size in voxels.shape)]
    # Clipped: a few voxels of metal or padding would decide alone.
    block = middle.astype(np.float32).clip(LOWEST_HU, 2000)
    correlations = []
    for axis in range(block.ndim):
        along = np.moveaxis(block, axis, 0)
        one, next_one = along[:-1].ravel(), along[1:].ravel()
        if one.size < _FEWEST_PAIRS:
            continue
        one, next_one = one - one.mean(), next_one - next_one.mean()
        spread = float(one @ one) * float(next_one @ next_one)
        if spread > 0:
            correlations.append(float(one @ next_one) / math.sqrt(spread))
    return max(correlations, default=1.0)


def clip_evidence(evidence: HuEvidence) -> HuEvidence:
    """What `measure_hu` finds once padding was clipped: no share counts values below -1024 HU by themselves."""
    return replace(evidence, minimum=max(evidence.minimum, float(LOWEST_HU)), maximum=max(evidence.maximum, float(LOWEST_HU)))


def clip_padding(voxels: NDArray, lowest: float | None = None) -> tuple[NDArray, tuple[str, ...]]:
    """CT voxels with everything below -1024 HU set to -1024, in place where they can be written, and a note of how many.

    Values that low are written outside the scanner's field of view; left as they are they would drag every mean. lowest: the
    least of the voxels, where that is known.
    """
    lowest = float(voxels.min()) if lowest is None else lowest
    if lowest >= LOWEST_HU:
        return voxels, ()
    clipped = voxels if voxels.flags.writeable else voxels.copy(order="K")
    below = 0
    # Plane by plane, in memory order: temporary arrays of a whole scan cost more time than the arithmetic.
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
    small_numbers = scan.voxels.dtype == np.int16 and evidence.minimum >= 0 and evidence.maximum < 150
    if small_numbers or is_label_map(scan.voxels):
        return f"not in HU ({values}, whole numbers only): {_LABEL_MAP}"
    if evidence.maximum - evidence.minimum < 50:
        return f"not in HU ({values}): appears to be rescaled already; give the scan in HU"
    remedy = "give the scan in HU" if scan.modality == "CT" else "pass --modality mr if it is MR, otherwise give the scan in HU"
    return f"not in HU ({values}; CT holds air near -1000 or fat near -100): {remedy}"
