"""With the same weights the encoder equals MONAI's SwinTransformer (mergingv2) at every stage, to 1e-5 in float32.

Views of 64 voxels and more: below that MONAI shrinks a window wrongly (METHOD.md); there ours is held to brute force
(tests/model/test_window_attention.py). Prints the largest and the mean difference: run with -s. Needs the extra `monai`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dagman.model import SwinEncoder, SwinShape, normalise_features

pytest.importorskip("monai", reason="parity with MONAI needs the extra `monai`")

SHAPE = SwinShape(embed=12, depths=(2, 2, 2, 2), heads=(2, 2, 4, 4))
VIEWS = [(64, 64, 64), (96, 96, 96), (64, 96, 128), (72, 80, 66), (65, 70, 67), (64, 80, 96), (70, 70, 70), (96, 65, 101)]


def build_monai_swin(shape: SwinShape) -> torch.nn.Module:
    from monai.networks.nets.swin_unetr import SwinTransformer

    return SwinTransformer(
        in_chans=shape.in_channels,
        embed_dim=shape.embed,
        window_size=(shape.window,) * 3,
        patch_size=(shape.patch,) * 3,
        depths=shape.depths,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        downsample="mergingv2",
    )


def convert_weights(monai: dict[str, Tensor]) -> dict[str, Tensor]:
    """MONAI's names and shapes to ours."""
    ours = {}
    for name, tensor in monai.items():
        if name.endswith("relative_position_index"):
            continue
        if name == "patch_embed.proj.weight":
            tensor = tensor.flatten(1)
        new = (
            name.replace("patch_embed.proj", "patch_projection")
            .replace(".downsample.", ".merging.")
            .replace(".attn.", ".attention.")
        )
        new = new.replace("relative_position_bias_table", "bias_table")
        for stage in range(4):
            new = new.replace(f"layers{stage + 1}.0.", f"stages.{stage}.")
        ours[new] = tensor
    return ours


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, SwinEncoder]:
    """Both encoders with the same random weights; norms and biases too, which start as 1 and 0 and would hide a swap."""
    monai = build_monai_swin(SHAPE).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in monai.named_parameters():
            spread = 0.3 if parameter.ndim == 1 or "table" in name else parameter[0].numel() ** -0.5
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=draws))
    ours = SwinEncoder(SHAPE).eval()
    standardisation = {"mean": ours.mean, "std": ours.std}
    ours.load_state_dict(convert_weights(monai.state_dict()) | standardisation)
    # As on export: (x - mean) / std folded into MONAI's projection.
    with torch.no_grad():
        projection = monai.patch_embed.proj
        projection.bias -= projection.weight.sum(dim=(1, 2, 3, 4)) * SHAPE.mean / SHAPE.std
        projection.weight /= SHAPE.std
    return monai, ours


@pytest.mark.parametrize("sides", VIEWS, ids=lambda sides: "x".join(map(str, sides)))
def test_every_stage_equals_monai(pair: tuple[torch.nn.Module, SwinEncoder], sides: tuple[int, int, int]) -> None:
    monai, ours = pair
    view = torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw, normalised = monai(view, normalize=False)[1:], monai(view, normalize=True)[1:]
        features = ours(view)
    for kind, wanted, got in (("raw", raw, features), ("normalised", normalised, normalise_features(features))):
        for stage, (theirs, mine) in enumerate(zip(wanted, got, strict=True), start=1):
            assert mine.shape == theirs.shape
            gap = (mine - theirs).abs()
            print(f"{sides} {kind} x{stage}: largest {gap.max():.1e}, mean {gap.mean():.1e}, of values to {theirs.abs().max():.1f}")
            assert gap.max() < 1e-5


def test_gradients_equal_monais(pair: tuple[torch.nn.Module, SwinEncoder]) -> None:
    monai, ours = pair
    view = torch.rand(1, 1, 72, 64, 68, generator=torch.Generator().manual_seed(2))
    for encoder, maps in ((monai, monai(view, normalize=False)[1:]), (ours, ours(view))):
        encoder.zero_grad()
        sum(x.square().mean() for x in maps).backward()
    theirs = convert_weights({name: p.grad for name, p in monai.named_parameters()})
    for name, parameter in ours.named_parameters():
        if name.startswith("patch_projection"):
            continue  # its gradient differs by the folded standardisation
        gap = (parameter.grad - theirs[name]).norm() / theirs[name].norm()
        assert gap < 1e-4, name
