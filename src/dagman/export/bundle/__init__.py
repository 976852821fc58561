"""A kept segmentation model as a bundle that MONAI runs by itself, without dagman."""
