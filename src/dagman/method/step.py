"""One training step (paper 3.1 and 3.2): the teacher's forward pass and the student's losses.

Notation: P pairs of views u and v, N units per view, K prototypes, R masked units over all views in row order. In masks,
True means masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dagman.devices import send
from dagman.method.losses import cross_entropy, masked_l1
from dagman.method.masking import Masking, MaskingShares, count_masked, count_share, expand_units, locate_units, mask_units
from dagman.method.networks import Network, Outputs, unit_grid
from dagman.method.noise import PATCHES_PER_UNIT, patch_dropout
from dagman.model.backbone import UNIT


@dataclass(frozen=True, kw_only=True)
class Method:
    """A composed method preset (METHOD, Method presets): the masking, the teacher's noise and the weights of the losses."""

    masking: Masking
    shares: MaskingShares
    needs_attention: bool
    attention_from: str
    noise: float
    granularity: str
    weights: dict[str, float]
    student_temperature: float
    symmetric: bool


@dataclass(frozen=True, kw_only=True)
class ViewPair:
    """P pairs of overlapping crops, u = views[:, 0] and v = views[:, 1], with all random numbers drawn for them.

    Attributes:
        views: Intensities in [0, 1].
        masking: Draws for the masking; they may stay on the CPU if the masking does not use attention.
        noise: Draws for the teacher's patch dropout.
        drop_path: Draws for the student's stochastic depth, one per residual branch (L).
        inside: The part of each view that lies inside its scan, as first voxel and last voxel + 1, on the CPU. The rest of the
            view is padding, which is neither masked nor reconstructed. None if all views lie inside.
    """

    views: Float[Tensor, "P 2 1 X Y Z"]
    masking: Float[Tensor, "P 2 N D"]
    noise: Float[Tensor, "P 2 M"]
    drop_path: Float[Tensor, "L P 2"]
    inside: Int[Tensor, "P 2 2 3"] | None = None

    def take(self, part: slice) -> ViewPair:
        """Select some of the pairs, with their draws."""
        return ViewPair(
            views=self.views[part],
            masking=self.masking[part],
            noise=self.noise[part],
            drop_path=self.drop_path[:, part],
            inside=None if self.inside is None else self.inside[part],
        )


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """The student's mask, and the teacher's projections by loss: `ampd` (R K), `aitd` and `gitd` (P 2 K)."""

    masked: Bool[Tensor, "P 2 N"]
    projections: dict[str, Tensor]


@torch.no_grad()
def teacher_forward(teacher: Network | None, pair: ViewPair, method: Method) -> TeacherOutputs:
    """Compute each view's mask from the teacher's attention (3.1), and the noisy teacher's projections (3.2)."""
    views = pair.views.flatten(0, 1)
    grid = unit_grid(tuple(views.shape[2:]))
    dropped = patch_dropout(pair.noise.flatten(0, 1), grid, method.noise, method.granularity)
    kept = None
    if dropped is not None and method.granularity == "unit":
        units = math.prod(grid)
        kept = len(views) * (units - count_share(method.noise, units))
    encoded = teacher.encode(views, dropped, visible=kept) if teacher is not None and len(teacher.projectors) else None
    attention = None
    if teacher is not None and method.needs_attention:
        source = None if method.attention_from == "clean" else dropped
        # If attention and projections come from the same input, one pass serves both.
        shared = encoded is not None and source is dropped
        attention = teacher.attend_encoded(encoded) if shared and encoded is not None else teacher.attend(views, source)  # Eq. 1
    box = None if pair.inside is None else find_inside_units(pair.inside.flatten(0, 1))
    masked = mask_units(method.masking, attention, grid, method.shares, pair.masking.flatten(0, 1), box).unflatten(0, (-1, 2))
    masked = send(masked, views.device)
    if teacher is None or encoded is None:
        return TeacherOutputs(masked=masked, projections={})
    # AMPD has targets only for the views that the student sees: both, or just u.
    seen = masked if method.symmetric else torch.stack([masked[:, 0], torch.zeros_like(masked[:, 1])], dim=1)
    projections = teacher.project(encoded, seen.flatten(0, 1), count_rows(pair, method))
    return TeacherOutputs(
        masked=masked, projections={name: p if name == "ampd" else p.unflatten(0, (-1, 2)) for name, p in projections.items()}
    )


def student_losses(
    student: Callable[..., Outputs], pair: ViewPair, masked: Bool[Tensor, "P 2 N"], targets: Mapping[str, Tensor], method: Method
) -> dict[str, Float[Tensor, ""]]:
    """Compute the unweighted losses by name: the student reconstructs masked voxels and predicts the teacher's targets P_t.

    targets: `ampd` (R K) in the order of `masked`; `aitd` and `gitd` (P 2 K) for both views.
    """
    seen = 2 if method.symmetric else 1
    views, units = pair.views[:, :seen].flatten(0, 1), masked[:, :seen].flatten(0, 1)
    grid, tau = unit_grid(tuple(views.shape[2:])), method.student_temperature
    count = count_rows(pair, method)
    s = student(views, expand_units(units, grid, PATCHES_PER_UNIT), units, pair.drop_path[:, :, :seen].flatten(1), count=count)
    # AITD and GITD compare across the pair: the student's u with the teacher's v, and v with u.
    other = {name: p.flip(1)[:, :seen].flatten(0, 1) for name, p in targets.items() if name != "ampd"}
    losses = {}
    if s.reconstruction is not None:
        voxels = expand_units(units, grid, UNIT)
        if pair.inside is not None:
            voxels = voxels & find_inside_voxels(pair.inside[:, :seen].flatten(0, 1), voxels)
        losses["amip"] = masked_l1(s.reconstruction, views, voxels)  # Eq. 3
    if "ampd" in targets:
        losses["ampd"] = cross_entropy(targets["ampd"], s.projections["ampd"], tau, weight_rows(units, count))  # Eq. 4
    if "aitd" in targets:
        losses["aitd"] = cross_entropy(other["aitd"], s.projections["aitd"], tau)  # Eq. 2
    if "gitd" in targets:
        losses["gitd"] = cross_entropy(other["gitd"], s.projections["gitd"], tau)  # Eq. 5
    return losses


def count_rows(pair: ViewPair, method: Method) -> int:
    """Count the masked units R over all views that the student sees, on the host, before the mask itself is known."""
    seen = 2 if method.symmetric else 1
    box = None if pair.inside is None else find_inside_units(pair.inside[:, :seen].flatten(0, 1))
    (x, y, z), views = pair.views.shape[3:], len(pair.views) * seen
    return sum(count_masked(method.shares, unit_grid((x, y, z)), views, box))


def weight_rows(units: Bool[Tensor, "B N"], count: int | None = None) -> Float[Tensor, "R"]:
    """Weights of the rows of masked units, so that a weighted sum is the mean over each view's units, then over views.

    count: R, if known; saves waiting for the device.
    """
    counts = units.sum(dim=1, keepdim=True).clamp_min(1)
    return (1.0 / (len(units) * counts)).expand_as(units).flatten().index_select(0, locate_units(units, count))


def find_inside_units(inside: Int[Tensor, "B 2 3"]) -> Int[Tensor, "B 2 3"]:
    """Convert each view's box of voxels inside the scan to the box of units that contain any of them."""
    return torch.stack([inside[:, 0] // UNIT, -(-inside[:, 1] // UNIT)], dim=1)


def find_inside_voxels(inside: Int[Tensor, "B 2 3"], like: Bool[Tensor, "B X Y Z"]) -> Bool[Tensor, "B X Y Z"]:
    """Mark the voxels of each view that lie inside its scan, on the device of `like`."""
    box = send(inside, like.device)
    axes = []
    for axis, side in enumerate(like.shape[1:]):
        places = torch.arange(side, device=like.device)
        axes.append((places >= box[:, 0, axis, None]) & (places < box[:, 1, axis, None]))
    return axes[0][:, :, None, None] & axes[1][:, None, :, None] & axes[2][:, None, None, :]
