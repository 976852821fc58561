"""Export a Swin encoder as the `swinViT` of MONAI's SwinUNETR, where it loads strictly.

Our encoder standardises intensities, (x - mean) / std, and MONAI's does not, so this step is folded into the patch projection. Both
pad with intensity 0 before it, so features are equal also for views with odd sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.export.forms import Exported
from dagman.export.monai.preparation import list_left_out, show_reading, state_limits, state_preparation
from dagman.model import SwinEncoder
from dagman.model.foreign import MERGINGS, MonaiSwin
from dagman.model.window_attention import relative_positions

FILE = "swinvit.safetensors"
FEATURE_UNIT = 12
"""SwinUNETR requires that feature_size is a multiple of this number; its SwinTransformer does not."""


def write_swin(encoder: Encoder, folder: Path) -> Exported:
    """Write the weights of `swinViT`.

    Raises:
        EncoderError: The encoder is a Swin of MONAI that SwinUNETR cannot build.
    """
    state, merging, left_out = convert_swin(encoder)
    save_file(state, folder / FILE, metadata={"format": "pt", "downsample": merging, **state_preparation(encoder)})
    return Exported(files=(FILE,), usage=_show_usage(encoder, merging), left_out=left_out, notes=_state_limits(encoder))


def convert_swin(encoder: Encoder) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Convert an encoder to MONAI's SwinTransformer.

    Returns:
        The weights under MONAI's names, the value of `downsample`, and the parts of the encoder that it cannot hold.
    """
    backbone = encoder.network.encoder
    left_out = list_left_out(encoder)
    if isinstance(backbone, MonaiSwin):
        state = {name: _own(value) for name, value in backbone.swin.state_dict().items()}
        merging = encoder.config.backbone.partition(":")[2] or "mergingv2"
        if merging not in MERGINGS[:2]:
            what = f"has the backbone {encoder.config.backbone}, which the code in README.md cannot build"
            raise EncoderError(what, where=encoder.source, do="Use the file it came from")
        return state, merging, left_out
    backbone = cast(SwinEncoder, backbone)
    shape = backbone.shape
    state = {
        _rename(name): _own(value) for name, value in backbone.state_dict().items() if name not in ("mean", "std", "mask_token")
    }
    weight, bias = state["patch_embed.proj.weight"].double(), state["patch_embed.proj.bias"].double()
    state["patch_embed.proj.bias"] = (bias - weight.sum(dim=1) * shape.mean / shape.std).float()
    state["patch_embed.proj.weight"] = (weight / shape.std).float().unflatten(1, (shape.in_channels, *(shape.patch,) * 3))
    index = relative_positions((shape.window,) * 3, shape.window, torch.device("cpu"))
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = index.clone()
    return state, "mergingv2", left_out


def _rename(name: str) -> str:
    for ours, theirs in (
        ("patch_projection", "patch_embed.proj"),
        (".merging.", ".downsample."),
        (".attention.", ".attn."),
        ("bias_table", "relative_position_bias_table"),
    ):
        name = name.replace(ours, theirs)
    head, stage, *rest = name.split(".", 2)
    return f"layers{int(stage) + 1}.0.{rest[0]}" if head == "stages" else name


def _own(value: Tensor) -> Tensor:
    return value.detach().to("cpu").clone().contiguous()


def _show_usage(encoder: Encoder, merging: str) -> str:
    shape = encoder.config.shape
    sizes = f"depths={shape.depths}, num_heads={shape.heads}, window_size={shape.window}, patch_size={shape.patch}"
    if shape.embed % FEATURE_UNIT:
        from_where, start = "SwinTransformer", f"swin = SwinTransformer(in_chans=1, embed_dim={shape.embed}, "
        sizes = (
            f"window_size=({shape.window},) * 3, patch_size=({shape.patch},) * 3, depths={shape.depths}, num_heads={shape.heads}"
        )
        load = f'swin.load_state_dict(load_file("{FILE}"))'
    else:
        from_where, start = "SwinUNETR", f"net = SwinUNETR(in_channels=1, out_channels=2, feature_size={shape.embed}, "
        load = f'net.swinViT.load_state_dict(load_file("{FILE}"))'
    imports, reading = show_reading(encoder)
    return f"""from monai.networks.nets.swin_unetr import {from_where}
{imports}
from safetensors.torch import load_file

{start}{sizes}, downsample="{merging}")
{load}  # strict: every weight has its place
{reading}
"""


def _state_limits(encoder: Encoder) -> tuple[str, ...]:
    least = 16 * encoder.config.shape.window
    return state_limits(
        f"Features equal dagman's for views whose sides are at least {least} voxels: below that, MONAI 1.6 uses other rows of "
        f"its relative position bias table for windows truncated by the view."
    )
