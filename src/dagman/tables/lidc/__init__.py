"""Imports LIDC-IDRI: up to four readers' outlines and ratings of lung nodules, from TCIA's DICOM and XML to a table.

Armato et al. 2011, https://doi.org/10.1118/1.3528204; data: https://www.cancerimagingarchive.net/collection/lidc-idri/.
"""

from dagman.tables.lidc.importing import LidcSummary, import_lidc

__all__ = ["LidcSummary", "import_lidc"]
