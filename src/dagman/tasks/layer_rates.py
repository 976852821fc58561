"""Layer-wise learning rate decay (Clark et al., ICLR 2020; Bao et al., ICLR 2022)."""

from __future__ import annotations

from typing import Any

from torch import nn

from dagman.model import Backbone
from dagman.model.backbone import is_decayed


def scale_rates(backbone: Backbone, head: nn.Module, *, rate: float, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Make parameter groups for AdamW: head and last layer at `rate`, each earlier layer at `decay` times the next one's rate.

    As in pretraining, weight decay applies to the parameters for which `is_decayed` holds.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    decayed = {id(p) for part in (backbone, head) for name, p in part.named_parameters() if is_decayed(name, p)}
    layers = backbone.layers()
    rates = [rate * decay ** (len(layers) - 1 - index) for index in range(len(layers))]
    for layer, at in zip([*layers, list(head.parameters())], [*rates, rate], strict=True):
        for parameter in layer:
            groups.setdefault((at, weight_decay if id(parameter) in decayed else 0.0), []).append(parameter)
    return [{"params": parameters, "lr": at, "weight_decay": decays} for (at, decays), parameters in groups.items()]
