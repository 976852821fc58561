"""Plain DICOM read past pydicom, where that gives the same and is many times as fast; all else is left to it."""
