"""Augments views by mirroring, contrast and noise; off by default (App. A). Random numbers are drawn by address, then applied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dagman.devices import send
from dagman.settings.tree import ViewSettings
from dagman.training.draws import draw_uniform


def is_active(view: ViewSettings) -> bool:
    """Whether any augmentation is on."""
    return max(view.flip, view.intensity_scale, view.intensity_shift, view.noise) > 0


def augment_views(views: Tensor, settings: ViewSettings, seed: int, step: int, numbers: Sequence[int]) -> Tensor:
    """Mirror, rescale and shift views (B 1 X Y Z in [0, 1]) and add noise, with separate draws for each; clamped to [0, 1]."""
    draws = draw_uniform(seed, "augmentation", step, numbers, (5,))
    mirrored_axes = (draws[:, :3] < settings.flip).tolist()
    changed = []
    for view, draw, mirrors in zip(views, send(draws, views.device), mirrored_axes, strict=True):
        axes = [axis + 1 for axis, mirror in enumerate(mirrors) if mirror]
        mirrored = view.flip(axes) if axes else view
        scale = 1 + settings.intensity_scale * (2 * draw[3] - 1)
        shift = settings.intensity_shift * (2 * draw[4] - 1)
        changed.append(mirrored * scale + shift)
    result = torch.stack(changed)
    if settings.noise:
        # Box-Muller, so that all random numbers come from the same uniform draws.
        shape = tuple(views.shape[1:])
        a = draw_uniform(seed, "noise radius", step, numbers, shape)
        b = draw_uniform(seed, "noise angle", step, numbers, shape)
        normal = torch.sqrt(-2 * torch.log1p(-a)) * torch.cos(2 * torch.pi * b)
        result = result + settings.noise * send(normal, result.device)
    return result.clamp(0, 1)


def mirror_boxes(boxes: Tensor, side: int, settings: ViewSettings, seed: int, step: int, numbers: Sequence[int]) -> Tensor:
    """Mirror boxes in views (B 2 3: first voxel and last voxel + 1) as `augment_views` does."""
    mirrored = draw_uniform(seed, "augmentation", step, numbers, (5,))[:, None, :3] < settings.flip
    return torch.where(mirrored, side - boxes.flip(1), boxes)
