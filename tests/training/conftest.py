"""A small store of synthetic bodies and the settings of a run that takes a second: every test of this folder runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.settings import Settings, load_settings, resolve_settings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.trainer import Trainer
from dagman.training.views import ViewDataset, find_usable

TINY = (
    "view.side=32",
    "view.spacing=4",
    "model.embed=8",
    "model.depths=[1, 1, 1, 1]",
    "model.heads=[1, 2, 2, 4]",
    "model.sa_heads=2",
    "projector.hidden=16",
    "projector.bottleneck=8",
    "projector.prototypes=16",
    "train.steps=6",
    "train.monitor_views=2",
    "train.monitor_every=2",
    "train.precision=fp32",
    "train.device=cpu",
    "train.workers=0",
)


def make_body(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """A body with two lungs and noise in air, int16 HU X Y Z."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.85) ** 2 < 1] = 40
    for side in (-0.4, 0.4):
        hu[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.8) ** 2 < 1] = -850
    hu += np.random.default_rng(seed).normal(0, 20, shape)
    return np.rint(hu).astype(np.int16)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bodies that a view of 32 voxels at 4 mm fits, and one that is too flat."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, shape in enumerate([(40, 38, 36), (36, 40, 34), (44, 36, 36), (40, 40, 12)]):
        image = nibabel.Nifti1Image(make_body(shape, seed), np.diag([4.0, 4.0, 4.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / f"body{seed}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def store(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scans prepared at 4 mm."""
    summary = prepare_store(scans, tmp_path_factory.mktemp("prepared") / "store", Preparation(spacing=4.0), workers=1)
    return Store(summary.path)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The `--set` lines of a very small run of six steps."""
    return TINY


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., Settings]:
    """A function that gives very small resolved settings of a method, with further `key=value` lines."""

    def make(*assignments: str, method: str = "dagman") -> Settings:
        return resolve_settings(load_settings("tiny", method, assignments=[*TINY, *assignments])[0])[0]

    return make


@pytest.fixture(scope="session")
def make_dataset(store: Store) -> Callable[[Settings], ViewDataset]:
    """A function that gives the views of a run by step."""

    def make(settings: Settings) -> ViewDataset:
        usable, _ = find_usable({row.id: row.shape for row in store.rows}, settings.view)
        train = settings.train
        return ViewDataset(store, usable, settings.view, train.batch, settings.seed, train.steps)

    return make


@pytest.fixture(scope="session")
def make_trainer(make_dataset: Callable[[Settings], ViewDataset]) -> Callable[..., Trainer]:
    """A function that gives a trainer that writes into a folder."""

    def make(settings: Settings, folder: Path, workers: int = 0) -> Trainer:
        return Trainer(
            settings,
            make_dataset(settings),
            folder,
            device="cpu",
            precision=settings.train.precision,
            workers=workers,
            state={"store": "none"},
            on_event=lambda name, values: None,
        )

    return make
