"""Learning rates that fall from layer to layer downwards (Clark et al., ICLR 2020; Bao et al., ICLR 2022)."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_LAYER = re.compile(r".*?(?:blocks\.\d+|layers\.\d+\.\d+|merging|downsample)")
"""Names of blocks in our Swin, MONAI's and the ResNets; what has none of them is a layer by its first name."""


def scale_rates(network: nn.Module, head: nn.Module, *, rate: float, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: the head and the last layer at `rate`, each layer below at `decay` times the one above.

    Weight decay on matrices alone, as in pretraining.
    """
    names = list(dict.fromkeys(name_layer(name) for name, _ in network.named_parameters()))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}

    def add(parameter: nn.Parameter, at: float) -> None:
        decays = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((at, decays), []).append(parameter)

    for name, parameter in network.named_parameters():
        above = len(names) - 1 - names.index(name_layer(name))
        add(parameter, rate * decay**above)
    for parameter in head.parameters():
        add(parameter, rate)
    return [{"params": parameters, "lr": at, "weight_decay": decays} for (at, decays), parameters in groups.items()]


def name_layer(parameter: str) -> str:
    """The layer that a parameter belongs to; layers follow one another as in the forward pass.

    >>> name_layer("stages.0.blocks.1.norm1.weight")
    'stages.0.blocks.1'
    """
    found = _LAYER.match(parameter)
    return found.group() if found else parameter.partition(".")[0]
