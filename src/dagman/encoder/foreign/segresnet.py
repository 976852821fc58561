"""Import CT-FM's weights: the encoder of MONAI's SegResNet, with or without the decoder of a segmentation network."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dagman.encoder.foreign.layouts import WRAPPERS, ForeignWeights, Preparation, part_weights
from dagman.errors import EncoderError
from dagman.model import SwinShape
from dagman.model.foreign.segresnet import DEPTHS

_FIRST = "conv_init.weight"
_CTFM = Preparation(
    spacing=1.0, low=-1024.0, high=2048.0, view=64, source="CT-FM's extract_feat_LP.py and TumorImagingBench; turned to SPL inside"
)
_HEADS = re.compile(r"(?:up_layers|head|heads)\.")


def holds_segresnet(tensors: dict[str, Tensor]) -> bool:
    """Check whether a file contains the encoder of a SegResNet."""
    return any(WRAPPERS.sub("", name).removeprefix("encoder.") == _FIRST for name in tensors)


def recognise_segresnet(tensors: dict[str, Tensor], path: Path) -> tuple[ForeignWeights, SwinShape]:
    """Return the weights of the encoder under MONAI's names, and its sizes; weights of the decoder are skipped.

    Raises:
        EncoderError: Levels or norms differ from CT-FM's, it takes several channels, or weights are left over.
    """
    named = {WRAPPERS.sub("", name): value.float() for name, value in tensors.items()}
    prefix = "" if _FIRST in named else "encoder."
    own = re.compile(re.escape(prefix) + r"(?:conv_init|layers)\.")
    state, left_out = part_weights(named, own, _HEADS, path)
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    levels = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("layers.")), default=-1)
    blocks = tuple(
        len({name.split(".")[3] for name in state if name.startswith(f"layers.{level}.blocks.")}) for level in range(levels)
    )
    do = "Give CT-FM's encoder, or that of a network that was trained from it"
    if len(blocks) != len(DEPTHS) or blocks[0] != DEPTHS[0]:
        listed = ", ".join(map(str, blocks))
        what = f"is a SegResNet of levels of {listed} blocks; those of CT-FM are five, the first of one"
        raise EncoderError(what, where=path, do=do)
    if "layers.0.blocks.0.norm1.running_mean" not in state:
        raise EncoderError("is a SegResNet without batch norm, as VISTA3D's; CT-FM's has one", where=path, do=do)
    first = state[_FIRST]
    if first.ndim != 5 or first.shape[1] != 1:
        raise EncoderError(f"its first convolution has the shape {tuple(first.shape)}", where=path, do=do)
    shape = SwinShape(embed=first.shape[0], depths=blocks[1:], heads=(1, 1, 1, 1))
    weights = ForeignWeights(state=state, layout="CT-FM (SegResNet)", merging="", left_out=left_out, preparation=_CTFM)
    return weights, shape
