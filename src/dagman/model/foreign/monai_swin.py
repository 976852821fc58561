"""MONAI's Swin as a backbone (extra `monai`)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dagman.errors import MissingExtraError
from dagman.model.backbone import Backbone, BackboneKind, MaskFill, register_backbone
from dagman.model.swin import SwinShape

MERGINGS = ("mergingv2", "merging", "merging-before-fix")
"""Patch mergings: MONAI's two, and the second before a bug fix, when it used two neighbours twice and two not at all."""
VARIANTS = tuple(f"{merging}{norm}{conv}" for merging in MERGINGS for norm in ("", "+norm") for conv in ("", "+v2"))
"""Mergings, optionally with a norm after the patch projection (SMIT) and with convolutions before each stage (`use_v2`, VoCo)."""
_REPEATED = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class MonaiSwin(Backbone):
    """MONAI's SwinTransformer; maps are the outputs of the mergings, and masked patch tokens become zero after the projection."""

    def __init__(self, swin: Any, shape: SwinShape) -> None:
        super().__init__()
        self.widths = shape.widths
        self.swin = swin

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps; see `Backbone.forward`. `drop` has no effect, as stochastic depth is not used."""
        swin = self.swin
        x = swin.patch_embed(view)
        if hidden is not None:
            x = torch.where(hidden[:, None], x.new_zeros(()), x)
        maps = []
        for number in range(1, 5 if stages is None else min(stages, 4) + 1):
            if swin.use_v2:
                x = getattr(swin, f"layers{number}c")[0](x.contiguous())
            x = getattr(swin, f"layers{number}")[0](x.contiguous())
            maps.append(x)
        return maps

    def layers(self) -> list[list[nn.Parameter]]:
        """List parameters of the patch projection, then of each convolution, block and merging."""
        parts = [self.swin.patch_embed]
        for number in range(1, 5):
            stage = getattr(self.swin, f"layers{number}")[0]
            parts += [getattr(self.swin, f"layers{number}c")[0]] if self.swin.use_v2 else []
            parts += [*stage.blocks, stage.downsample]
        return [list(part.parameters()) for part in parts]


def build_monai_swin(shape: SwinShape, variant: str, mask_fill: MaskFill = "zero") -> MonaiSwin:
    """Build a randomly initialised MONAI Swin; `variant` is one of `VARIANTS`, or "" for the first.

    Raises:
        MissingExtraError: If MONAI is not installed.
    """
    try:
        from monai.networks.nets.swin_unetr import SwinTransformer
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    merging, *parts = (variant or VARIANTS[0]).split("+")
    swin = SwinTransformer(
        in_chans=1,
        embed_dim=shape.embed,
        window_size=(shape.window,) * 3,
        patch_size=(2, 2, 2),
        depths=shape.depths,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        patch_norm="norm" in parts,
        downsample=_repeat_neighbours() if merging == MERGINGS[2] else merging,
        use_v2="v2" in parts,
    )
    return MonaiSwin(swin, shape)


def _repeat_neighbours() -> Any:
    """Define MONAI's `merging` as it was from version 0.9 until it was fixed."""
    from monai.networks.nets.swin_unetr import PatchMergingV2

    class RepeatingMerging(PatchMergingV2):
        """Weights published at that time were trained with the repeated neighbours, and need them."""

        def forward(self, x: Tensor) -> Tensor:
            _, d, h, w, _ = x.shape
            x = torch.nn.functional.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
            return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in _REPEATED], dim=-1)))

    return RepeatingMerging


register_backbone("monai-swin", BackboneKind(build=build_monai_swin, mask_fills=("zero",), variants=("", *VARIANTS)))
