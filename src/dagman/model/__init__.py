"""The networks: tensors in, tensors out; torch (and jaxtyping) alone."""

from dagman.model.intensity import to_unit_range, to_unit_ranges
from dagman.model.projector import Projector
from dagman.model.reconstruction import ReconstructionHead
from dagman.model.semantic_attention import SemanticAttention, Semantics
from dagman.model.swin import StageAttention, SwinEncoder, SwinShape, normalise_features
from dagman.model.window_attention import attend_windows

__all__ = [
    "Projector",
    "ReconstructionHead",
    "SemanticAttention",
    "Semantics",
    "StageAttention",
    "SwinEncoder",
    "SwinShape",
    "attend_windows",
    "normalise_features",
    "to_unit_range",
    "to_unit_ranges",
]
