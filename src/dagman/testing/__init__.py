"""Small inputs for testing code that uses dagman: a body in HU, NIfTI and DICOM files, a tiny encoder, settings of a short run.

Requires no test framework. Everything depends only on the arguments, so that numbers in tests stay the same.
"""

from dagman.testing.bodies import make_body, write_nifti
from dagman.testing.dicom import write_dicom_series
from dagman.testing.encoders import TINY_SETTINGS, TINY_SHAPE, make_tiny_config, write_tiny_encoder

__all__ = [
    "TINY_SETTINGS",
    "TINY_SHAPE",
    "make_body",
    "make_tiny_config",
    "write_dicom_series",
    "write_nifti",
    "write_tiny_encoder",
]
