"""A fast reader for the most common kind of DICOM file, with the same results as pydicom, which reads all other files."""
