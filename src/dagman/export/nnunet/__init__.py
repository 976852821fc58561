"""An encoder for nnU-Net 2: a trainer that it finds by `nnUNet_extTrainer`, plans, and the file that nnssl's readers know."""
