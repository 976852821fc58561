"""Export of an encoder for nnU-Net 2: a trainer for `nnUNet_extTrainer`, plans, and a checkpoint in nnssl's layout."""
