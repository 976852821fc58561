"""Small inputs for tests of code that uses dagman: a body in HU, NIfTI and DICOM files, a tiny encoder, settings of a short run.

Needs no test framework. What is made depends on the arguments alone, so that numbers in a test stay the same.
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
