"""A run keeps its curves for W&B and MLflow where it is asked to, with the real libraries, and nothing leaves its folder.

The tests skip where a library is not installed: pip install 'dagman[wandb,mlflow]'. The environment forbids the network to all.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
import sys

import pytest

from dagman.errors import MissingExtraError, SettingsError
from dagman.settings import load_settings
from dagman.training.pretraining import pretrain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


@pytest.fixture
def train(store, tiny, tmp_path, monkeypatch):
    """A function that trains for some of four steps, with a tracker."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(track: str, until: int = 4):
        def stop(name, values):
            if name == "step" and values["step"] == until < 4:
                raise KeyboardInterrupt

        lines = [*tiny, "train.steps=4", "train.monitor_every=2", "train.checkpoint_every=2", f"train.track={track}"]
        with contextlib.suppress(KeyboardInterrupt):
            pretrain(store.path, tmp_path / "run", method="simmim", assignments=lines, on_event=stop)
        return tmp_path / "run"

    return run


def test_tensorboard_is_kept_without_being_asked_for_and_nothing_else(train):
    run = train("none")
    assert list((run / "tensorboard").glob("events.out.tfevents.*.host.*"))
    assert not (run / "wandb").exists()
    assert not (run / "mlflow").exists()


def test_wandb_is_offline_in_the_runs_folder(train):
    pytest.importorskip("wandb")

    run = train("wandb")
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    # A log of uncompressed messages, a history row a step.
    kept = file.read_bytes()
    assert kept.count(b"step/total") >= 4
    assert b"monitor/reconstruction/ratio" in kept
    assert not any(name.encode() in kept for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5)


def test_mlflow_is_a_store_of_files_in_the_runs_folder_and_a_resume_goes_on_in_the_same_run(train):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    train("mlflow", until=3)
    run = train("mlflow")
    client = MlflowClient((run / "mlflow").absolute().as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("dagman").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(kept.info.run_id, "step/total")]
    # Step 3 was done twice: the checkpoint before is of step 2.
    assert steps == [1, 2, 3, 3, 4]
    assert kept.info.status == "FINISHED"
    assert kept.data.params["train.steps"] == "4"
    assert "monitor/reconstruction/ratio" in kept.data.metrics


@pytest.mark.parametrize(("track", "extra"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_library_that_is_missing_is_named_with_its_extra(train, monkeypatch, track, extra):
    for name in ("wandb", "mlflow", "mlflow.entities", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"dagman\[{extra}\]"):
        train(track)


def test_another_tracker_is_refused_by_name():
    with pytest.raises(SettingsError, match="'none', 'wandb' or 'mlflow'"):
        load_settings("tiny", assignments=["train.track=comet"])
