"""Generates the built-in cohort: synthetic chest-abdomen CTs in HU with nodules, a tumour, organs and outcomes."""

from dagman.scans.phantom.anatomy import ORGANS
from dagman.scans.phantom.cohort import Cohort, Outcome, PhantomPatient, draw_outcome, make_patient, name_cohort, write_cohort
from dagman.scans.phantom.lesions import Lesion, PlacedNodule, draw_nodules, draw_tumour

__all__ = [
    "ORGANS",
    "Cohort",
    "Lesion",
    "Outcome",
    "PhantomPatient",
    "PlacedNodule",
    "draw_nodules",
    "draw_outcome",
    "draw_tumour",
    "make_patient",
    "name_cohort",
    "write_cohort",
]
