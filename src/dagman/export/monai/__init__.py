"""An encoder as a network of MONAI, loaded strictly there: its Swin, ViT, ResNet or SegResNet."""
