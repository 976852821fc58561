"""LIDC-IDRI: four readers' outlines and ratings of lung nodules, from TCIA's DICOM and XML to a table."""

from dagman.tables.lidc.importing import LidcSummary, import_lidc

__all__ = ["LidcSummary", "import_lidc"]
