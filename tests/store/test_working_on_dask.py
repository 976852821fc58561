"""Work on a real Dask scheduler with worker processes on loopback: the same bits as in one process, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dagman.encoder.embedding import list_columns
from dagman.encoder.loading import load_encoder
from dagman.encoder.pooling import Pooling
from dagman.errors import StoreError
from dagman.store.manifest import Store
from dagman.store.workers import Lost, run_tasks
from dagman.store.writer import Progress, prepare_store
from dagman.tables.structures import Structure
from dagman.tasks.finetuning import LinearHead
from dagman.tasks.head_models import Classifier, save_classifier
from dagman.tasks.inputs.descriptors import DESCRIPTORS
from dagman.tasks.models import parse_model
from dagman.tasks.prediction import PredictionSettings, predict_scans
from dagman.tasks.segment.model import save_model, start_model

cloudpickle = pytest.importorskip("cloudpickle")
pytest.importorskip("distributed")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dask", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(autouse=True, scope="module")
def use_loopback(unmeasured):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGMAN_TESTS_LOOPBACK", "1")
        yield


class Cluster:
    """A scheduler and its workers, as a user starts them."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        self.scheduler = start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)
        )
        options = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        # A test that is killed leaves no worker that looks for its scheduler for ever.
        options += ("--death-timeout", "600")
        self.workers = [start("worker", *options, "--local-directory", str(folder)) for _ in range(workers)]

    def find_address(self) -> str:
        from distributed import Client

        with Client(scheduler_file=str(self.file), timeout=600, set_as_default=False) as client:
            client.wait_for_workers(len(self.workers), timeout=600)
            return client.scheduler.address

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def running(use_loopback, tmp_path_factory):
    """The address of a scheduler with one worker."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), workers=1)
    try:
        yield cluster.find_address()
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def encoder(make_tiny_encoder):
    return make_tiny_encoder(spacing=5.0, semantic=False)


def die_at_first(marker: Path, task: int) -> int:
    """The first worker that meets task 1 is killed over it."""
    if task == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * 10


def die_always(task: int) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * 10


def list_store(folder: Path) -> dict[str, bytes]:
    files = [*folder.rglob("*.b2nd"), folder / "manifest.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_killed_worker_loses_nothing_and_a_lost_scheduler_is_gone_on_from(cohort, tmp_path, monkeypatch, running):
    monkeypatch.setattr("dagman.store.cluster.dask_tasks._CONNECT_SECONDS", 3)
    prepare_store(cohort, tmp_path / "wanted", workers=1)
    out, cluster = tmp_path / "store", Cluster(tmp_path, workers=2)

    def lose(event: object) -> None:
        if isinstance(event, Progress) and event.done == 2:
            cluster.scheduler.kill()
            cluster.scheduler.wait()

    try:
        address = cluster.find_address()
        results = dict(run_tasks(partial(die_at_first, tmp_path / "met"), [0, 1, 2, 3], 2, dask=address))
        assert results == {0: 0, 1: 10, 2: 20, 3: 30}
        assert (tmp_path / "met").exists()
        with pytest.raises(StoreError, match=r"was lost\. Start it again, and repeat the command"):
            prepare_store(cohort, out, dask=address, on_event=lose)
    finally:
        cluster.stop()
    done = len(Store(out))
    assert 2 <= done <= len(Store(tmp_path / "wanted"))
    summary = prepare_store(cohort, out, dask=running)
    assert summary.already == done
    assert list_store(out) == list_store(tmp_path / "wanted")


def test_a_task_that_kills_every_worker_is_listed_and_the_others_are_done(monkeypatch):
    monkeypatch.setattr("dagman.store.cluster.dask_tasks.TRIES", 2)
    results = dict(run_tasks(die_always, [0, 1, 2], 1, dask="local"))
    assert isinstance(results[1], Lost)
    assert results[1].reason.startswith("its workers died 2 times")
    assert (results[0], results[2]) == (0, 20)


def test_an_address_without_a_scheduler_is_named(monkeypatch):
    monkeypatch.setattr("dagman.store.cluster.dask_tasks._CONNECT_SECONDS", 0.5)
    with pytest.raises(StoreError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(run_tasks(die_always, [0], 1, dask="tcp://127.0.0.1:9"))


def test_inspecting_on_a_cluster_says_the_same(cohort, running, call_dagman):
    wanted = call_dagman("inspect", cohort, "--json", "--workers", 1)
    assert call_dagman("inspect", cohort, "--json", "--dask", running) == wanted
    assert wanted[0] == 0


def test_features_of_a_cluster_are_the_same_bits(cohort, encoder, running, call_dagman, tmp_path):
    table = tmp_path / "points.csv"
    scans = sorted(cohort.glob("p*/*.nii*"))
    rows = [f"{scan},{scan.parent.name},{x},0,0" for scan in scans[:3] for x in (60, 80)]
    rows += [f"{cohort / 'broken.nii.gz'},x,0,0,0"]
    table.write_text("\n".join(["scan,patient,center_x_mm,center_y_mm,center_z_mm", *rows]) + "\n")
    for name, sources in (("scans", [cohort]), ("points", [table])):
        for folder, options in (("here", ()), ("there", ("--dask", running))):
            out = tmp_path / folder / f"{name}.parquet"
            code, _, _ = call_dagman("embed", encoder, *sources, "--out", out, "--device", "cpu", *options)
            assert code == 0
        for file in (f"{name}.parquet", f"{name}.parquet.rejected.csv"):
            assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
        assert (tmp_path / "here" / f"{name}.parquet.rejected.csv").read_text().count("\n") == 2


def make_models(folder: Path, encoder: Path) -> dict[str, Path]:
    """A segmentation, a probe, a fine-tuned encoder and a baseline without one, as tasks keep them, with drawn weights."""
    loaded, random = load_encoder(encoder, device="cpu"), np.random.default_rng(0)
    save_model(start_model(loaded, [Structure(name="lung", values=(1,))]), folder / "segmentation")
    pooled = len(list_columns(loaded, Pooling()))
    widths = {
        "linear": pooled,
        "finetune": pooled,
        "histogram": len(DESCRIPTORS[parse_model("histogram").kind][1]),
    }
    for method, width in widths.items():
        arrays = {"mean": np.zeros(width), "scale": np.ones(width), "weights": random.normal(size=(2, width)), "bias": np.zeros(2)}
        head = LinearHead(**{name: value.astype(np.float32) for name, value in arrays.items()})
        alone = method == "histogram"
        kept = Classifier(
            method="linear" if alone else method,
            spec=method if alone else "tiny",
            encoder=None if alone else loaded,
            head=head,
            classes=("no", "yes"),
        )
        save_classifier(kept, folder / method)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_predictions_of_a_cluster_are_the_same_bits(cohort, encoder, running, tmp_path):
    for name, model in make_models(tmp_path / "models", encoder).items():
        here, there = tmp_path / name / "here", tmp_path / name / "there"
        predict_scans(model, [cohort], here, PredictionSettings(device="cpu"))
        for _ in range(2):
            # Repeated, it takes the label maps that are there.
            predict_scans(model, [cohort], there, PredictionSettings(device="cpu", dask=running))
        files = [path.relative_to(here) for path in sorted(here.rglob("*")) if path.suffix in (".csv", ".gz", ".jsonl")]
        assert {path: (here / path).read_bytes() for path in files} == {path: (there / path).read_bytes() for path in files}
        assert len(files) == (2 + 1 + 6 if name == "segmentation" else 2)
