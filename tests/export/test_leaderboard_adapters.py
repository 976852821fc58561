"""Proves that the files of examples/leaderboards do what kaiko-eva and TumorImagingBench call, with dagman's own features.

Neither is a dependency. Where one is installed, its own class is used; else one of the signature that it documents: eva 0.4.5,
`eva.core.utils.registry.Registry` and `ModuleFactory`; TumorImagingBench 0.1.4, `tumorimagingbench.models.base.BaseModel`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dagman.encoder.encoder import Encoder
from dagman.testing import make_body, write_nifti

_FOLDER = Path(__file__).parents[2] / "examples" / "leaderboards"


class _BaseModel(ABC, nn.Module):
    """As the bench's."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def load(self, weights_path: str) -> None: ...

    @abstractmethod
    def preprocess(self, x: Any) -> Any: ...

    @abstractmethod
    def forward(self, x: Any) -> Any: ...


class _Registry:
    """As eva's."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}

    def register(self, key: str, /) -> Any:
        def wrapper(obj: Any) -> Any:
            if key in self.items:
                raise ValueError(f"Entry {key} is already registered.")
            self.items[key] = obj
            return obj

        return wrapper

    def entries(self) -> list[str]:
        return list(self.items)

    def get(self, name: str) -> Any:
        return self.items[name]


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """The module itself where its package is installed with all that it needs, else one that holds `contents`."""
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
        return
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
    for key, value in contents.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)


@pytest.fixture
def leaderboards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _stand_in(monkeypatch, "tumorimagingbench.models.base", BaseModel=_BaseModel)
    _stand_in(monkeypatch, "eva.vision.models.networks.backbones.registry", backbone_registry=_Registry())
    monkeypatch.syspath_prepend(str(_FOLDER))
    yield
    for name in ("eva_backbone", "tumor_imaging_bench"):
        sys.modules.pop(name, None)


def test_the_bench_gets_dagmans_features_of_a_seed_point(
    leaderboards: None, encoder_folder: Path, encoder: Encoder, tmp_path: Path
):
    bench = importlib.import_module("tumor_imaging_bench")
    scan = write_nifti(tmp_path / "s.nii.gz", make_body())
    extractor = bench.DagmanExtractor()
    with pytest.raises(ValueError, match="no encoder was given"):
        extractor.load()
    extractor.load(str(encoder_folder))
    # Its tables are LPS: x and y are of the other sign.
    image = extractor.preprocess({"image_path": str(scan), "coordX": -110.0, "coordY": -100.0, "coordZ": 90.0, "label": 1})
    assert image.shape == (1, 64, 64, 64)
    with torch.no_grad():
        feature = extractor.forward(image.unsqueeze(0))
    wanted = encoder.embed(scan, points=[(110, 100, 90)], crop_mm=48).values
    np.testing.assert_allclose(feature.cpu().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_eva_builds_the_backbone_and_reads_six_maps(leaderboards: None, encoder_folder: Path, encoder: Encoder):
    adapter = importlib.import_module("eva_backbone")
    registry = importlib.import_module("eva.vision.models.networks.backbones.registry").backbone_registry
    adapter.register()
    adapter.register()
    # As eva's ModuleFactory does: the arguments that the signature has.
    item = registry.get("radiology/dagman")
    given = {"encoder": str(encoder_folder), "out_indices": 6, "pretrained": True}
    built = item(**{name: value for name, value in given.items() if name in inspect.signature(item.__init__).parameters})
    assert isinstance(built, nn.Module)
    # A body whose axes run to right, anterior, superior, as eva stores it: superior, posterior, left.
    hu = torch.from_numpy(make_body((32, 32, 64)).astype(np.float32))
    low, high = encoder.config.low, encoder.config.high
    stored = ((hu - low) / (high - low)).clamp(0, 1).flip(0, 1).permute(2, 1, 0)[None, None]
    with torch.no_grad():
        maps = built(stored)
    embed = encoder.config.shape.embed
    assert [m.shape[1] for m in maps] == [embed, embed, 2 * embed, 4 * embed, 8 * embed, 16 * embed]
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(side // stride for side in (64, 32, 32)) for stride in (1, 2, 4, 8, 16, 32)]
    torch.testing.assert_close(maps[0][:, :1], stored)
    for got, wanted in zip(maps[2:], encoder.features(hu[None, None]), strict=True):
        torch.testing.assert_close(got, wanted.permute(0, 1, 4, 3, 2).flip(3, 4), rtol=1e-4, atol=1e-4)
    built.out_indices = None
    assert built(stored).shape == (1, sum(encoder.network.encoder.widths))
    # Frozen or trained, as eva decides.
    built(stored).sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters() if parameter.requires_grad)
    assert adapter.describe_settings(str(encoder_folder))["SCALE_INTENSITY_MIN"] == low
