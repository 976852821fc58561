"""Turns the views of a step, as they were read, into micro-batches with all random numbers drawn for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from dagman.devices import send
from dagman.method.networks import unit_grid
from dagman.method.noise import count_noise_draws
from dagman.method.step import ViewPair
from dagman.model.intensity import to_unit_ranges
from dagman.settings import Settings
from dagman.training.augmentation import augment_views, is_active, mirror_boxes
from dagman.training.draws import draw_drop_path, draw_masking, draw_noise


def draw_pairs(
    batch: Mapping[str, Any], settings: Settings, step: int, own: range, branches: int, size: int, device: torch.device
) -> list[ViewPair]:
    """Make micro-batches of `size` pairs from the views of a step; the draws of a pair do not depend on the micro-batches.

    own: Indices of these pairs within the step. branches: Number of residual branches with stochastic depth.
    """
    seed, view = settings.seed, settings.view
    numbers = range(2 * own.start, 2 * own.stop)
    stored = torch.stack([send(batch[name], device) for name in ("u", "v")], dim=1)
    ranges = send(batch["range"].repeat_interleave(2, dim=0), device)
    views, inside = to_unit_ranges(stored.flatten(0, 1), ranges), batch["inside"]
    if is_active(view):
        views = augment_views(views, view, seed, step, numbers)
        inside = mirror_boxes(inside.flatten(0, 1), view.side, view, seed, step, numbers).unflatten(0, (-1, 2))
    views = views.unflatten(0, (-1, 2))
    grid = unit_grid((view.side,) * 3)
    drawn = {
        "masking": draw_masking(seed, step, numbers, math.prod(grid)).unflatten(0, (-1, 2)),
        "noise": draw_noise(seed, step, numbers, count_noise_draws(grid, settings.teacher.granularity)).unflatten(0, (-1, 2)),
    }
    drop_path = send(draw_drop_path(seed, step, numbers, branches).unflatten(1, (-1, 2)), device)
    # A mask that does not use attention is made on the CPU, because block masking would have to read its boxes from the device.
    stays = set() if settings.masking.choice.needs_attention else {"masking"}
    drawn = {name: values if name in stays else send(values, device) for name, values in drawn.items()}
    whole = ViewPair(views=views, drop_path=drop_path, inside=inside, **drawn)
    return [whole.take(slice(first, first + size)) for first in range(0, len(views), size)]
