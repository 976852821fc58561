"""The networks, from tensors to tensors. Depends only on torch and jaxtyping."""

from dagman.model.backbone import (
    BACKBONES,
    Backbone,
    BackboneKind,
    ClsBackbone,
    Encoded,
    build_backbone,
    find_backbone,
    normalise_features,
    register_backbone,
)
from dagman.model.foreign import MonaiSwin, ResNetStages
from dagman.model.intensity import to_unit_range, to_unit_ranges
from dagman.model.projector import Projector
from dagman.model.reconstruction import ReconstructionHead
from dagman.model.semantic_attention import SemanticAttention, Semantics
from dagman.model.swin import StageAttention, SwinEncoder, SwinShape
from dagman.model.vit import ViTEncoder, ViTShape
from dagman.model.window_attention import attend_windows

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneKind",
    "ClsBackbone",
    "Encoded",
    "MonaiSwin",
    "Projector",
    "ReconstructionHead",
    "ResNetStages",
    "SemanticAttention",
    "Semantics",
    "StageAttention",
    "SwinEncoder",
    "SwinShape",
    "ViTEncoder",
    "ViTShape",
    "attend_windows",
    "build_backbone",
    "find_backbone",
    "normalise_features",
    "register_backbone",
    "to_unit_range",
    "to_unit_ranges",
]
