"""nnU-Net's residual encoder as a backbone, from `dynamic_network_architectures` (extra `cnn`)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from dagman.errors import MissingExtraError, SettingsError
from dagman.model.backbone import BackboneKind, MaskFill, register_backbone
from dagman.model.foreign.cnn import MEAN, ConvolutionalStages
from dagman.model.swin import SwinShape

VARIANTS = ("8", "16", "32")
"""Channels at full resolution: 32 is nnU-Net's encoder (its presets M, L and XL); the others are equally deep, but narrower."""
BLOCKS = (1, 3, 4, 6, 6, 6)
"""Number of residual blocks of the six stages, at strides 1 to 32."""
DEEPEST = 32
"""Side of a token of x4 in voxels."""
STD = 0.35
"""Standard deviation by which views are divided, as in the Swin."""


class ResidualEncoderStages(ConvolutionalStages):
    """Stages 3 to 6 of nnU-Net's residual encoder; the first two are part of the stem. Views are standardised as in the Swin."""

    def __init__(self, encoder: Any, mask_fill: MaskFill = "zero") -> None:
        first, second, *rest = encoder.stages
        stages = nn.ModuleList(stage.blocks for stage in rest)
        stem = nn.Sequential(_Preparation(), encoder.stem, first, second)
        super().__init__(stem, stages, tuple(encoder.output_channels[2:]), mask_fill)

    def forward(
        self,
        view: Float[Tensor, "B 1 X Y Z"],
        hidden: Bool[Tensor, "B x y z"] | None = None,
        drop: Float[Tensor, "R B"] | None = None,
        stages: int | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Compute feature maps; see `ConvolutionalStages.forward`.

        Raises:
            SettingsError: If the view has 32^3 voxels or less, so that x4 would be a single voxel and instance norm undefined.
        """
        if all(side <= DEEPEST for side in view.shape[2:]) and (stages is None or stages > 3):
            sides = " x ".join(map(str, view.shape[2:]))
            what = f"for a view of {sides} voxels, x4 of resenc is a single voxel, which instance norm cannot normalise"
            raise SettingsError(what, do=f"Give views of more than {DEEPEST} voxels, such as view.side=64")
        maps = super().forward(view, hidden, drop, stages)
        grids = [[-(-side // stride) for side in view.shape[2:]] for stride in self.strides]
        return [features[:, :, :x, :y, :z] for features, (x, y, z) in zip(maps, grids, strict=False)]


class _Preparation(nn.Module):
    """Pad with intensity 0 to multiples of 32, as the residual blocks require even sides, and standardise."""

    def forward(self, view: Tensor) -> Tensor:
        view = functional.pad(view, [n for side in reversed(view.shape[2:]) for n in (0, -side % DEEPEST)])
        return (view - MEAN) / STD


def build_residual_encoder(shape: SwinShape, variant: str, mask_fill: MaskFill) -> ResidualEncoderStages:
    """Build a residual encoder configured and initialised as in nnU-Net: instance norm, leaky ReLU, He initialisation.

    Raises:
        MissingExtraError: If `dynamic_network_architectures` is not installed.
    """
    try:
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He
    except ImportError:
        raise MissingExtraError("dynamic_network_architectures", "cnn") from None
    encoder = ResidualEncoder(
        input_channels=1,
        n_stages=len(BLOCKS),
        features_per_stage=list(list_features(variant)),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2, 2, 2],
        n_blocks_per_stage=list(BLOCKS),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    encoder.apply(InitWeights_He(1e-2))
    _name_once(encoder)
    return ResidualEncoderStages(encoder, mask_fill)


def _name_once(module: nn.Module) -> None:
    """Keep each layer only as part of `all_modules`, which the blocks use; safetensors files cannot store a weight twice."""
    if "all_modules" in module._modules:
        for name in [name for name in module._modules if name != "all_modules"]:
            delattr(module, name)
    for child in module.children():
        _name_once(child)


def list_features(variant: str) -> tuple[int, ...]:
    """List the channels of the six stages: doubled up to ten times those at full resolution, as in nnU-Net (32 to 320)."""
    first = int(variant)
    return tuple(min(first * 2**number, first * 10) for number in range(len(BLOCKS)))


def _shape_encoder(variant: str) -> SwinShape:
    # Half the channels of x1, like the embedding of a Swin.
    return SwinShape(embed=int(variant) * 2, depths=BLOCKS[2:], heads=(1, 1, 1, 1))


register_backbone(
    "resenc",
    BackboneKind(
        build=build_residual_encoder,
        mask_fills=("zero", "token"),
        least_view=2 * DEEPEST,
        variants=VARIANTS,
        baselines={variant: _shape_encoder(variant) for variant in VARIANTS},
    ),
)
