"""Lung nodules and a tumour: what each is like (drawn first, without an image), and its rendering at a place.

Malignancy of a nodule shows in its size a little (diameter alone reaches an AUC of about 0.7), in its margin and in its texture
much more. Benign nodules are round, sharp and even, some calcified; malignant ones are lobulated, spiculated and uneven.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dagman.randomness import generator
from dagman.scans.phantom.texture import make_field


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A nodule or tumour: diameter (mm, of the ball of equal volume), margin and texture from 0 (smooth, even) upwards, mean HU.

    `unevenness` is the standard deviation of its HU; `calcified` is a dense middle.
    """

    diameter: float
    lobulation: float
    spiculation: float
    unevenness: float
    hu: float
    calcified: bool = False
    malignant: bool = False


@dataclass(frozen=True, kw_only=True)
class PlacedNodule:
    """A nodule in a scan: its label value in the map, its centre (RAS mm) and what it is like."""

    value: int
    center_mm: tuple[float, float, float]
    lesion: Lesion


def draw_nodules(seed: int, index: int) -> list[Lesion]:
    """Three to five nodules of patient `index`, with both classes among them."""
    rng = generator(seed, "phantom nodules", index)
    count = int(rng.integers(3, 6))
    malignant = rng.permutation((np.arange(count) + rng.integers(2)) % 2 == 0)
    return [_draw_nodule(rng, bool(label)) for label in malignant]


def _draw_nodule(rng: np.random.Generator, malignant: bool) -> Lesion:
    # Separations d (in standard deviations) of the three signs; the AUC of one alone is Phi(d / sqrt 2).
    size = rng.normal(0.36 if malignant else -0.36)
    margin = rng.normal(1.0 if malignant else -1.0)
    texture = rng.normal(1.1 if malignant else -1.1)
    return Lesion(
        diameter=float(np.clip(13.0 * np.exp(0.28 * size), 6.0, 24.0)),
        lobulation=float(0.09 + 0.10 * _rise(margin)),
        spiculation=float(0.85 * _rise(margin - 0.4)),
        unevenness=float(12 + 210 * _rise(texture - 0.2)),
        hu=float(rng.normal(25, 20)),
        calcified=bool(not malignant and rng.random() < 0.12),
        malignant=malignant,
    )


def draw_tumour(seed: int, index: int) -> tuple[Lesion, float]:
    """A liver tumour of patient `index`, and its texture on a standard scale (mean 0, deviation 1), on which the outcome depends.

    Its HU are relative to the liver around it.
    """
    rng = generator(seed, "phantom tumour", index)
    texture = float(rng.normal())
    lesion = Lesion(
        diameter=float(rng.uniform(24, 58)),
        lobulation=float(rng.uniform(0.08, 0.2)),
        spiculation=0.0,
        unevenness=float(6 + 46 * _rise(1.2 * texture)),
        hu=float(rng.normal(-34, 5)),
    )
    return lesion, texture


def _rise(value: float) -> float:
    return float(1 / (1 + np.exp(-1.7 * value)))


def render_lesion(
    lesion: Lesion, rng: np.random.Generator, hu: np.ndarray, center: np.ndarray, spacing: float, *, background: float, grain: float
) -> np.ndarray:
    """Render a lesion into `hu` (X Y Z, in place) around `center` (voxels); returns its mask (bool X Y Z).

    It is drawn on a finer grid (about 1 mm for a nodule) and averaged, so that its edge and strands blur as in a scanner.
    `background` is added to its HU (0 in the lung; the liver's HU for a tumour); `grain` (mm) is the size of its uneven parts.
    """
    fine = max(1, round(spacing / max(1.0, lesion.diameter / 20)))
    reach = int(np.ceil(lesion.diameter / spacing)) + 1
    first = np.maximum(np.round(center).astype(int) - reach, 0)
    last = np.minimum(np.round(center).astype(int) + reach + 1, hu.shape)
    axes = [(np.arange((b - a) * fine) + 0.5) / fine - 0.5 + a - c for a, b, c in zip(first, last, center, strict=True)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32) * spacing
    distance = np.sqrt((offset**2).sum(0)) + 1e-3
    radius = _draw_surface(lesion, rng, offset / distance)
    pitch = spacing / fine
    soft = 0.5 if lesion.spiculation < 0.3 else 0.9
    share = np.clip(0.5 + (radius - distance) / (2 * soft), 0, 1)
    inner = lesion.hu + background + lesion.unevenness * make_field(rng, distance.shape, grain / pitch)
    if lesion.calcified:
        inner = np.where(distance < 0.5 * radius, 320.0, inner)
    weight = _average(share, fine)
    content = _average(share * inner, fine) / np.maximum(weight, 1e-6)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    hu[box] += weight * (content - hu[box])
    mask = np.zeros(hu.shape, dtype=bool)
    mask[box] = weight >= min(0.5, float(weight.max()))
    return mask


def _draw_surface(lesion: Lesion, rng: np.random.Generator, direction: np.ndarray) -> np.ndarray:
    """Radius (mm) in each direction (3 X Y Z unit vectors): a ball with broad bumps and narrow spikes, of the lesion's volume."""
    bumps = rng.normal(size=(7, 3))
    spikes = rng.normal(size=(int(10 + 14 * lesion.spiculation) if lesion.spiculation else 0, 3))
    shape = np.ones(direction.shape[1:], dtype=np.float32)
    for way, height in zip(bumps, rng.normal(0, 1.6 * lesion.lobulation, len(bumps)), strict=True):
        shape += height * np.exp(4 * (_cosine(way, direction) - 1))
    for way, height in zip(spikes, rng.uniform(0.5, 1.3, len(spikes)), strict=True):
        shape += lesion.spiculation * height * np.exp(32 * (_cosine(way, direction) - 1))
    shape = np.maximum(shape, 0.4)
    return lesion.diameter / 2 * shape / float(np.cbrt((shape**3).mean()))


def _cosine(way: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.tensordot((way / np.linalg.norm(way)).astype(np.float32), direction, axes=1)


def _average(values: np.ndarray, by: int) -> np.ndarray:
    x, y, z = (n // by for n in values.shape)
    return values.reshape(x, by, y, by, z, by).mean(axis=(1, 3, 5))
