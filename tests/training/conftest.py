"""A small store of synthetic bodies and the settings of a run that takes a second: every test of this folder runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dagman.settings import Settings, load_settings, resolve_settings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.testing import TINY_SETTINGS, make_body, write_nifti
from dagman.training.views import ViewDataset, find_usable


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bodies that a view of 32 voxels at 4 mm fits, and one that is too flat."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, shape in enumerate([(40, 38, 36), (36, 40, 34), (44, 36, 36), (40, 40, 12)]):
        write_nifti(folder / f"body{seed}.nii.gz", make_body(shape, seed), 4.0)
    return folder


@pytest.fixture(scope="session")
def store(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scans prepared at 4 mm."""
    summary = prepare_store(scans, tmp_path_factory.mktemp("prepared") / "store", Preparation(spacing=4.0), workers=1)
    return Store(summary.path)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The `--set` lines of a very small run of six steps."""
    return TINY_SETTINGS


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., Settings]:
    """A function that gives very small resolved settings of a method, with further `key=value` lines."""

    def make(*assignments: str, method: str = "dagman") -> Settings:
        return resolve_settings(load_settings("tiny", method, assignments=[*TINY_SETTINGS, *assignments])[0])[0]

    return make


@pytest.fixture(scope="session")
def make_dataset(store: Store) -> Callable[[Settings], ViewDataset]:
    """A function that gives the views of a run by step."""

    def make(settings: Settings) -> ViewDataset:
        usable, _ = find_usable({row.id: row.shape for row in store.rows}, settings.view)
        train = settings.train
        return ViewDataset(store, usable, settings.view, train.batch, settings.seed, train.steps)

    return make
