"""Export a plain ViT, including its [CLS] token, as MONAI's ViT, where it loads strictly.

As with the Swin, the standardisation of intensities is folded into the patch projection. MONAI's ViT has a norm after its last
block and a classification head, which ours has not: the norm is exported with scale 1 and shift 0, the head with zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from dagman.encoder.encoder import Encoder
from dagman.export.forms import Exported
from dagman.export.monai.preparation import list_left_out, show_reading, state_limits, state_preparation
from dagman.model.vit import ViTEncoder

FILE = "vit.safetensors"
_NAMES = (("qkv.", "attn.qkv."), ("proj.", "attn.out_proj."))
_CLASSES = 2
_LATER = "norm_cross_attn"
"""A norm that MONAI's blocks have since version 1.4; it is used only for cross-attention, which this network does not have."""


def write_vit(encoder: Encoder, folder: Path) -> Exported:
    """Write the weights of a ViT under MONAI's names."""
    save_file(convert_vit(encoder), folder / FILE, metadata={"format": "pt", **state_preparation(encoder)})
    trained = encoder.config.semantic is not None
    notes = state_limits(
        f"It takes only views of {encoder.network.encoder.view} voxels per side, for which its position embeddings were learned: "
        "MONAI does not interpolate them.",
        "The [CLS] token comes first in MONAI, and last in dagman. "
        + ("" if trained else "It was not trained: the method of this encoder has no loss on it. ")
        + "The norm after the last block has scale 1 and shift 0, as dagman has none there; the weights of the head are zero, and "
        "have to be trained.",
    )
    return Exported(files=(FILE,), usage=_show_usage(encoder), left_out=list_left_out(encoder), notes=notes)


def convert_vit(encoder: Encoder) -> dict[str, Tensor]:
    """Convert an encoder to the weights of MONAI's ViT, under its names."""
    backbone = cast(ViTEncoder, encoder.network.encoder)
    shape = backbone.shape
    own = {name: value.detach().to("cpu") for name, value in backbone.state_dict().items()}
    weight, bias = own["patch_projection.weight"].double(), own["patch_projection.bias"].double()
    state = {
        # For proj_type="perceptron": a convolution sums the 4096 products with ten times the rounding error.
        "patch_embedding.patch_embeddings.1.weight": (weight / shape.std).float(),
        "patch_embedding.patch_embeddings.1.bias": (bias - weight.sum(dim=1) * shape.mean / shape.std).float(),
        "patch_embedding.position_embeddings": own["positions"].flatten(1).T[None],
        "cls_token": own["cls"][None, None],
        "norm.weight": torch.ones(shape.embed),
        "norm.bias": torch.zeros(shape.embed),
        "classification_head.weight": torch.zeros(_CLASSES, shape.embed),
        "classification_head.bias": torch.zeros(_CLASSES),
    }
    number = 0
    for stage, depth in enumerate(shape.depths):
        for block in range(depth):
            start = f"stages.{stage}.{block}."
            for name, value in own.items():
                if name.startswith(start):
                    rest = name.removeprefix(start)
                    for ours, theirs in _NAMES:
                        rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
                    state[f"blocks.{number}.{rest}"] = value
            state[f"blocks.{number}.{_LATER}.weight"] = torch.ones(shape.embed)
            state[f"blocks.{number}.{_LATER}.bias"] = torch.zeros(shape.embed)
            number += 1
    return {name: value.clone().contiguous() for name, value in state.items()}


def _show_usage(encoder: Encoder) -> str:
    shape = encoder.config.shape
    imports, reading = show_reading(encoder)
    side, mlp = cast(ViTEncoder, encoder.network.encoder).shape.view, int(shape.embed * shape.mlp_ratio)
    blocks = [sum(shape.depths[: stage + 1]) - 1 for stage in range(len(shape.depths))]
    return f"""from monai.networks.nets import ViT
{imports}
from safetensors.torch import load_file

net = ViT(
    1, ({side},) * 3, ({shape.patch},) * 3, hidden_size={shape.embed}, mlp_dim={mlp}, num_layers={sum(shape.depths)},
    num_heads={shape.heads[0]}, proj_type="perceptron", pos_embed_type="learnable", classification=True,
    num_classes={_CLASSES}, post_activation="", qkv_bias=True,
).eval()
net.load_state_dict(load_file("{FILE}"))  # strict: every weight has its place
{reading}

# tokens = net(view)[1]: after each block; the [CLS] token of x4 is tokens[-1][:, 0], and the maps are
# [tokens[n][:, 1:].mT.unflatten(2, ({side // shape.patch},) * 3) for n in {blocks}]
"""
