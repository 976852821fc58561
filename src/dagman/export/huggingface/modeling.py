"""The encoder as a model of transformers; copied to `modeling_dagman.py` of an export (extra `hub`)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput

from dagman.model.backbone import ClsBackbone, build_backbone, find_backbone
from dagman.model.semantic_attention import SemanticAttention
from dagman.model.swin import SwinShape


class DagmanConfig(PretrainedConfig):
    """Configuration of an encoder.

    Args:
        shape: Sizes of the backbone.
        semantic: `stage`, `heads`, `depth` and `position` of the semantic attention; None if there is none.
        mask_fill: What replaces masked tokens in training, "zero" or "token".
        backbone: Name of the backbone.
        **others: Passed to `PretrainedConfig`.
    """

    model_type = "dagman"

    def __init__(
        self,
        shape: dict[str, Any] | None = None,
        semantic: dict[str, Any] | None = None,
        mask_fill: Literal["zero", "token"] = "zero",
        backbone: str = "swin",
        **others: Any,
    ) -> None:
        self.shape = dict(shape or {})
        self.semantic = semantic
        self.mask_fill = mask_fill
        self.backbone = backbone
        super().__init__(**others)


class DagmanModel(PreTrainedModel):
    """An encoder that returns four feature maps, of stride `encoder.strides` (voxels per token) and `encoder.widths` channels."""

    config_class = DagmanConfig
    main_input_name = "pixel_values"

    def __init__(self, config: DagmanConfig) -> None:
        super().__init__(config)
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in config.shape.items()}
        shape = (find_backbone(config.backbone).shape or SwinShape)(**values)
        self.encoder = build_backbone(config.backbone, shape, mask_fill=config.mask_fill)
        self.semantic_attention = None
        if config.semantic is not None and not self.encoder.own_cls:
            semantic = dict(config.semantic)
            width = self.encoder.widths[semantic.pop("stage") - 1]
            self.semantic_attention = SemanticAttention(width, **semantic)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        # All weights come from the file; a new model keeps the initial weights that its modules drew.
        return

    def forward(self, pixel_values: Tensor, **unused: Any) -> BackboneOutput:
        """Compute feature maps (B C x y z) of views (B 1 X Y Z) with intensities in [0, 1].

        `attentions` contains the attention of the [CLS] token to the tokens of the stage that it reads (B H x y z), if the encoder
        was trained with one; otherwise None.
        """
        maps = tuple(x.float() for x in self.encoder(pixel_values))
        attentions = None
        if self.config.semantic is not None and isinstance(self.encoder, ClsBackbone):
            attentions = (self.encoder.attend(pixel_values).unflatten(2, maps[-1].shape[2:]),)
        if self.semantic_attention is not None:
            units = maps[self.config.semantic["stage"] - 1]
            attentions = (self.semantic_attention.attend(units).unflatten(2, units.shape[2:]),)
        return BackboneOutput(feature_maps=maps, attentions=attentions)
