"""Draws the properties of lung nodules and a tumour, and renders them into a scan.

The malignancy of a nodule shows slightly in its size (the diameter by itself reaches an AUC of about 0.7), and strongly in its
margin and texture. Benign nodules are round, sharp and even, and some are calcified; malignant ones are lobulated, spiculated and
uneven.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dagman.randomness import generator
from dagman.scans.phantom.texture import make_field


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """The properties of a nodule or tumour."""

    diameter: float
    "Diameter of a sphere of equal volume, mm."
    lobulation: float
    "Height of broad bumps of its surface; 0 is smooth."
    spiculation: float
    "Height of narrow spikes of its surface; 0 is smooth."
    unevenness: float
    "Standard deviation of its HU."
    hu: float
    "Mean HU."
    calcified: bool = False
    "Whether it has a dense centre."
    malignant: bool = False


@dataclass(frozen=True, kw_only=True)
class PlacedNodule:
    """A nodule in a scan: its value in the label map, its centre (RAS mm) and its properties."""

    value: int
    center_mm: tuple[float, float, float]
    lesion: Lesion


def draw_nodules(seed: int, index: int) -> list[Lesion]:
    """Draw three to five nodules of patient `index`, both benign and malignant ones."""
    rng = generator(seed, "phantom nodules", index)
    count = int(rng.integers(3, 6))
    malignant = rng.permutation((np.arange(count) + rng.integers(2)) % 2 == 0)
    return [_draw_nodule(rng, bool(label)) for label in malignant]


def _draw_nodule(rng: np.random.Generator, malignant: bool) -> Lesion:
    # The classes differ by d standard deviations in each of the three signs; the AUC of a single one is Phi(d / sqrt 2).
    size = rng.normal(0.36 if malignant else -0.36)
    margin = rng.normal(1.0 if malignant else -1.0)
    texture = rng.normal(1.1 if malignant else -1.1)
    return Lesion(
        diameter=float(np.clip(13.0 * np.exp(0.28 * size), 6.0, 24.0)),
        lobulation=float(0.09 + 0.10 * _sigmoid(margin)),
        spiculation=float(0.85 * _sigmoid(margin - 0.4)),
        unevenness=float(12 + 210 * _sigmoid(texture - 0.2)),
        hu=float(rng.normal(25, 20)),
        calcified=bool(not malignant and rng.random() < 0.12),
        malignant=malignant,
    )


def draw_tumour(seed: int, index: int) -> tuple[Lesion, float]:
    """Draw a liver tumour of patient `index`; its HU are relative to the surrounding liver.

    Returns:
        The tumour, and its texture on a standard scale (mean 0, standard deviation 1), on which the outcome depends.
    """
    rng = generator(seed, "phantom tumour", index)
    texture = float(rng.normal())
    lesion = Lesion(
        diameter=float(rng.uniform(24, 58)),
        lobulation=float(rng.uniform(0.08, 0.2)),
        spiculation=0.0,
        unevenness=float(6 + 46 * _sigmoid(1.2 * texture)),
        hu=float(rng.normal(-34, 5)),
    )
    return lesion, texture


def _sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-1.7 * value)))


def render_lesion(
    lesion: Lesion, rng: np.random.Generator, hu: np.ndarray, center: np.ndarray, spacing: float, *, background: float, grain: float
) -> np.ndarray:
    """Render a lesion into a scan.

    It is drawn on a finer grid (about 1 mm for a nodule) and averaged, so that its edge and spikes are blurred as in a scanner.

    Args:
        lesion: its properties.
        rng: source of random numbers.
        hu: X Y Z, changed in place.
        center: centre in voxels.
        spacing: voxel size in mm.
        background: added to the lesion's HU (0 in the lung, the liver's HU for a tumour).
        grain: size of the parts of its texture, mm.

    Returns:
        The lesion's mask, X Y Z bool.
    """
    fine = max(1, round(spacing / max(1.0, lesion.diameter / 20)))
    reach = int(np.ceil(lesion.diameter / spacing)) + 1
    first = np.maximum(np.round(center).astype(int) - reach, 0)
    last = np.minimum(np.round(center).astype(int) + reach + 1, hu.shape)
    axes = [(np.arange((b - a) * fine) + 0.5) / fine - 0.5 + a - c for a, b, c in zip(first, last, center, strict=True)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32) * spacing
    distance = np.sqrt((offset**2).sum(0)) + 1e-3
    radius = _draw_surface(lesion, rng, offset / distance)
    edge = 0.5 if lesion.spiculation < 0.3 else 0.9
    opacity = np.clip(0.5 + (radius - distance) / (2 * edge), 0, 1)
    inner = lesion.hu + background + lesion.unevenness * make_field(rng, distance.shape, grain / (spacing / fine))
    if lesion.calcified:
        inner = np.where(distance < 0.5 * radius, 320.0, inner)
    weight = _average(opacity, fine)
    content = _average(opacity * inner, fine) / np.maximum(weight, 1e-6)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    hu[box] += weight * (content - hu[box])
    mask = np.zeros(hu.shape, dtype=bool)
    mask[box] = weight >= min(0.5, float(weight.max()))
    return mask


def _draw_surface(lesion: Lesion, rng: np.random.Generator, direction: np.ndarray) -> np.ndarray:
    """Return the radius (mm) in each direction (3 X Y Z unit vectors) of a sphere with bumps and spikes, of the lesion's volume."""
    bumps = rng.normal(size=(7, 3))
    spikes = rng.normal(size=(int(10 + 14 * lesion.spiculation) if lesion.spiculation else 0, 3))
    shape = np.ones(direction.shape[1:], dtype=np.float32)
    for axis, height in zip(bumps, rng.normal(0, 1.6 * lesion.lobulation, len(bumps)), strict=True):
        shape += height * np.exp(4 * (_cosine(axis, direction) - 1))
    for axis, height in zip(spikes, rng.uniform(0.5, 1.3, len(spikes)), strict=True):
        shape += lesion.spiculation * height * np.exp(32 * (_cosine(axis, direction) - 1))
    shape = np.maximum(shape, 0.4)
    return lesion.diameter / 2 * shape / float(np.cbrt((shape**3).mean()))


def _cosine(axis: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.tensordot((axis / np.linalg.norm(axis)).astype(np.float32), direction, axes=1)


def _average(values: np.ndarray, factor: int) -> np.ndarray:
    x, y, z = (n // factor for n in values.shape)
    return values.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5))
