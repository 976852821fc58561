"""Export of an encoder as weights of a MONAI network (Swin, ViT, ResNet or SegResNet), which load strictly there."""
