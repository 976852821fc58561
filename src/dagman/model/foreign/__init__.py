"""Backbones from other libraries: MONAI's networks (extra `monai`) and nnU-Net's residual encoder (extra `cnn`).

This is the only part of `model` that needs more than torch, and only when such a backbone is built.
"""

from dagman.model.foreign.cnn import ConvolutionalStages
from dagman.model.foreign.monai_swin import MERGINGS, MonaiSwin
from dagman.model.foreign.residual_encoder import ResidualEncoderStages
from dagman.model.foreign.resnet import ResNetStages
from dagman.model.foreign.segresnet import SegResNetStages

__all__ = ["MERGINGS", "ConvolutionalStages", "MonaiSwin", "ResNetStages", "ResidualEncoderStages", "SegResNetStages"]
