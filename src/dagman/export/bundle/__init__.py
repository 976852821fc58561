"""Export of a segmentation model as a MONAI bundle, which runs without dagman."""
