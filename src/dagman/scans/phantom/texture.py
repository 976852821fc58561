"""Adds the texture of tissue and the noise of the scanner."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Standard deviation of tissue (HU) by its mean HU: it is large for lung and bone, small for fat and organs.
_GRAIN_HU = (-1000, -960, -900, -700, -300, -120, -60, 20, 150, 300, 800)
_GRAIN = (0, 0, 20, 30, 20, 9, 8, 5, 8, 40, 60)


def make_field(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> np.ndarray:
    """Draw a smooth random field, float32, with mean 0 and variance about 1 at every voxel, and a grain size of `length` voxels."""
    if length <= 1.5:
        field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), length / 2)
    else:
        # White noise on a grid as coarse as the grain, interpolated, since a large blur would take far longer.
        coarse = rng.standard_normal([int(np.ceil(n / length)) + 3 for n in shape], dtype=np.float32)
        steps = [np.arange(n, dtype=np.float32) / length + rng.uniform(0.5, 1.5) for n in shape]
        field = coarse
        for axis, step in enumerate(steps):
            field = _interpolate_axis(field, step, axis)
    field -= field.mean()
    return field / max(float(field.std()), 1e-6)


def _interpolate_axis(field: np.ndarray, position: np.ndarray, axis: int) -> np.ndarray:
    below = np.minimum(position.astype(int), field.shape[axis] - 2)
    weight = (position - below).astype(np.float32)
    weight = weight * weight * (3 - 2 * weight)
    weight = weight.reshape([-1 if i == axis else 1 for i in range(field.ndim)])
    low, high = np.take(field, below, axis), np.take(field, below + 1, axis)
    return low + weight * (high - low)


def add_grain(rng: np.random.Generator, hu: np.ndarray, spacing: float) -> None:
    """Add coarse and fine variations of tissue to `hu` (X Y Z float32), in place."""
    broad = make_field(rng, hu.shape, 18 / spacing)
    fine = make_field(rng, hu.shape, max(4 / spacing, 1.0))
    table = np.interp(np.arange(-1100, 3000), _GRAIN_HU, _GRAIN).astype(np.float32)
    amplitude = table[np.clip(hu, -1100, 2999).astype(np.int16) + 1100]
    hu += amplitude * (0.6 * broad + 0.8 * fine)


def add_noise(rng: np.random.Generator, hu: np.ndarray, depth: np.ndarray, spacing: float, level: float) -> None:
    """Add scanner noise to `hu` in place; it is correlated between neighbours, and stronger deep in the body.

    Args:
        rng: source of random numbers.
        hu: X Y Z float32.
        depth: depth of each voxel under the skin in mm.
        spacing: voxel size in mm.
        level: standard deviation in HU in the middle of the body.
    """
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    # Filtered back-projection passes medium frequencies within a slice, hence the difference of a narrow and a wide blur.
    narrow = 1.2 / spacing
    noise = ndimage.gaussian_filter(white, (narrow, narrow, 0.6 * narrow))
    noise -= 0.7 * ndimage.gaussian_filter(white, (3 * narrow, 3 * narrow, 0.6 * narrow))
    noise *= level / float(noise.std())
    hu += noise * np.clip(0.35 + depth / 120, 0.35, 1.25)
