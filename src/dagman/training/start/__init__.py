"""Where a pretraining goes on from: another run, an encoder, or weights of MONAI."""
