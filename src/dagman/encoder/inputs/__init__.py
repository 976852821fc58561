"""What users hand an encoder in Python beside single scans: arrays with an affine, lists of scans, data frames."""
