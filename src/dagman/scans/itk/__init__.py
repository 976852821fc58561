"""NRRD (.nrrd, .nhdr with its data file) and MetaImage (.mha, .mhd with its data file), decoded by SimpleITK in a process apart."""

from __future__ import annotations

from dagman.scans.itk.data_files import list_files
from dagman.scans.itk.reading import SUFFIXES, check_itk, measure_itk, read_itk

__all__ = ["SUFFIXES", "check_itk", "list_files", "measure_itk", "read_itk"]
