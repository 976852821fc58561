"""Export the residual encoder to nnU-Net: a checkpoint for `nnUNetv2_train -pretrained_weights`, and a script that adapts plans.

nnU-Net expects all weights except those of the last layers, so the file also contains a randomly initialised decoder. It is in
nnssl's layout, too. Our encoder standardises views itself; in nnU-Net, CTNormalization does this together with the HU window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dagman.encoder.encoder import Encoder
from dagman.export.forms import Exported
from dagman.export.nnunet.checkpoint import describe_adaptation, save_checkpoint
from dagman.export.nnunet.folder import NETWORK, SCRIPT, refuse_mr, write_script
from dagman.model.foreign.cnn import MEAN
from dagman.model.foreign.residual_encoder import BLOCKS, STD, list_features

FILE = "pretrained.pth"
NAME = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
_NAMES = (("stem.1.", "stem."), ("stem.2.", "stages.0."), ("stem.3.", "stages.1."))
_USAGE = f"""nnUNetv2_plan_and_preprocess -d 1 --no_pp
python {SCRIPT} 1
nnUNetv2_preprocess -d 1 -plans_name dagmanPlans -c 3d_fullres
nnUNetv2_train 1 3d_fullres 0 -p dagmanPlans -pretrained_weights {FILE}
nnUNetv2_predict -d 1 -i IMAGES -o OUT -f 0 -c 3d_fullres -p dagmanPlans
"""
_NOTES = (
    "The network, the trainer and its learning rate are nnU-Net's own; the decoder starts from random weights.",
    "nnU-Net reorients the images to RAS (NibabelIOWithReorient) and resamples them to the encoder's spacing, with cubic splines "
    "without anti-aliasing; dagman uses anti-aliasing when downsampling.",
    f"{FILE} is also in nnssl's layout: nnU-Net's master reads it (nnUNetv2_preprocess_like_nnssl), but normalises by z-score "
    "there, not by the HU window that this encoder was trained with.",
)


def write_residual_encoder(encoder: Encoder, folder: Path) -> Exported:
    """Write checkpoint and script.

    Raises:
        EncoderError: The encoder takes only MR.
    """
    refuse_mr(encoder)
    values = describe_unet(encoder.config.backbone.partition(":")[2])
    network = fill_unet(encoder.network.encoder, values)
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    # nnssl has a name for the largest variant, and builds the others from their sizes.
    known = "ResEncL" if encoder.config.backbone == "resenc:32" else "ResidualEncoderUNet"
    plan = describe_adaptation(
        encoder,
        {"arch_class_name": known, "arch_kwargs": values, "arch_kwargs_requiring_import": imported},
        stem="encoder.stem",
        projections=["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
    )
    save_checkpoint(encoder, network.state_dict(), plan, folder / FILE)
    architecture = {"network_class_name": NAME, "arch_kwargs": values, "_kw_requires_import": imported}
    write_script(encoder, folder, architecture, mean=MEAN, std=STD)
    left_out: tuple[str, ...] = ("the semantic attention",) if encoder.network.semantic_attention is not None else ()
    left_out += ("the mask token",) if encoder.network.encoder.mask_fill == "token" else ()
    return Exported(files=(FILE, SCRIPT, NETWORK), usage=_USAGE, left_out=left_out, notes=_NOTES, language="sh")


def describe_unet(variant: str) -> dict[str, Any]:
    """Describe the sizes of the network in plain values, in the format of nnU-Net's plans."""
    stages = len(BLOCKS)
    return {
        "n_stages": stages,
        "features_per_stage": list(list_features(variant)),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_blocks_per_stage": list(BLOCKS),
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def fill_unet(backbone: nn.Module, values: dict[str, Any]) -> nn.Module:
    """Build nnU-Net's network with the weights of the encoder; the decoder is initialised by nnU-Net with a fixed seed."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    operations = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResidualEncoderUNet(input_channels=1, num_classes=2, **{**values, **operations})
        network.apply(network.initialize)
    missing, surplus = network.encoder.load_state_dict(_rename(backbone.state_dict()), strict=False)
    # nnU-Net's blocks register each layer under two names, and ours under one of them; both are the same tensor.
    unfilled = [name for name in missing if "all_modules" in name]
    if surplus or unfilled:
        raise ValueError(f"the residual encoder has no place for {surplus}, and lacks {unfilled}")
    return network


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        new = name
        for ours, theirs in _NAMES:
            if name.startswith(ours):
                new = theirs + name.removeprefix(ours)
        if name.startswith("stages."):
            _, stage, rest = name.split(".", 2)
            new = f"stages.{int(stage) + 2}.blocks.{rest}"
        if name != "mask_token":
            renamed[new] = value.detach().to("cpu")
    return renamed
