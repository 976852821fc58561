"""Proves that pooling inside a mask is the weighted formula it claims to be, and that no structure is too small to be pooled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagman.encoder.pooling import Pooling, cover_cells, name_columns, pool_features
from dagman.errors import SettingsError
from dagman.randomness import generator

_SIDE = 32
_WIDTHS = (6, 12, 24, 48)
_STRIDES = (4, 8, 16, 32)


def _make_maps(seed: int) -> list[np.ndarray]:
    random = generator(seed, "maps")
    return [random.normal(3, 0.5, (width, *(_SIDE // stride,) * 3)) for width, stride in zip(_WIDTHS, _STRIDES, strict=True)]


def _pool_directly(features: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Cell by cell in float64, from the definition."""
    stride = inside.shape[0] // features.shape[1]
    cells, weights = [], []
    for place in np.ndindex(features.shape[1:]):
        box = tuple(slice(i * stride, (i + 1) * stride) for i in place)
        share = inside[box].mean()
        if share > 0:
            cells.append(features[(slice(None), *place)])
            weights.append(share)
    values, shares = np.array(cells, dtype=np.float64), np.array(weights)
    mean = np.average(values, axis=0, weights=shares)
    std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=shares))
    return np.concatenate([mean, std, values.max(axis=0)])


@given(st.integers(0, 1000), st.integers(1, 400))
def test_pooling_equals_the_formula_in_float64(seed: int, voxels: int):
    maps = _make_maps(seed)
    inside = np.zeros(_SIDE**3, dtype=bool)
    inside[generator(seed, "mask").choice(_SIDE**3, voxels, replace=False)] = True
    inside = inside.reshape(_SIDE, _SIDE, _SIDE)
    pooled = pool_features([torch.from_numpy(m).float() for m in maps], torch.from_numpy(inside), Pooling())
    expected = np.concatenate([_pool_directly(m.astype(np.float32).astype(np.float64), inside) for m in maps])
    np.testing.assert_allclose(pooled, expected, rtol=2e-6, atol=1e-7)


def test_one_voxel_is_pooled_at_every_stage():
    maps = _make_maps(0)
    inside = torch.zeros(_SIDE, _SIDE, _SIDE, dtype=torch.bool)
    inside[5, 30, 17] = True
    pooled = pool_features([torch.from_numpy(m).float() for m in maps], inside, Pooling(pools=("mean",)))
    cells = [m[:, 5 // s, 30 // s, 17 // s] for m, s in zip(maps, _STRIDES, strict=True)]
    np.testing.assert_allclose(pooled, np.concatenate(cells), rtol=1e-6)


def test_coverage_is_the_share_of_a_cell():
    inside = torch.zeros(8, 8, 8, dtype=torch.bool)
    inside[:4, :4, :2] = True
    assert cover_cells(inside, (2, 2, 2))[0, 0].tolist() == [0.5, 0.0]


def test_columns_are_named_in_the_order_of_the_vector():
    pooling = Pooling(stages=(1, 3), pools=("mean", "max"))
    maps = [torch.arange(width)[:, None, None, None].expand(width, 2, 2, 2).float() for width in (_WIDTHS[0], _WIDTHS[2])]
    names = name_columns(pooling, _WIDTHS)
    pooled = pool_features(maps, torch.ones(8, 8, 8, dtype=torch.bool), pooling)
    assert names[0] == "x1_mean_000"
    assert names[-1] == "x3_max_023"
    assert [int(name.rsplit("_")[-1]) for name in names] == pooled.astype(int).tolist()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"stages": (1, 5)}, "there is no stage 5. Choose among 1, 2, 3, 4."),
        ({"pools": ("mena",)}, "there is no statistic 'mena' to pool. Nearest: mean."),
        ({"pools": ()}, "nothing would be pooled. Choose at least one stage and one statistic."),
    ],
)
def test_a_pooling_there_is_not_is_refused(values: dict, text: str):
    with pytest.raises(SettingsError) as error:
        Pooling(**values)
    assert str(error.value) == text


def test_an_empty_mask_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="the mask contains no token"):
        pool_features([torch.ones(2, 2, 2, 2)], torch.zeros(8, 8, 8, dtype=torch.bool), Pooling(stages=(1,)))
