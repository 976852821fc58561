"""W&B (offline) and MLflow in the run's folder: optional trackers. Nothing is sent unless the user's environment requests it.

The libraries' own variables do so, `WANDB_MODE=online` and `MLFLOW_TRACKING_URI`; without them, everything stays in the folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dagman.errors import MissingExtraError
from dagman.records.hashes import hash_bytes
from dagman.settings import Settings

PROJECT = "dagman"


class Tracker(Protocol):
    """Receives the scalars of a run."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars of a step by name."""

    def close(self) -> None:
        """Flush and close."""


def open_tracker(folder: Path, settings: Settings) -> Tracker | None:
    """The tracker requested in the settings, if any. Raises MissingExtraError if its library is not installed."""
    if settings.train.track == "wandb":
        return WandbTracker(folder, settings)
    if settings.train.track == "mlflow":
        return MlflowTracker(folder, settings)
    return None


class WandbTracker:
    """A W&B run in `RUN/wandb`, offline: one file per process, all with the same id. `wandb sync` can send them later."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtraError("W&B", "wandb") from None
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=PROJECT,
            name=folder.resolve().name,
            id=_name_run(folder, settings),
            dir=str(folder),
            config=settings.model_dump(mode="json"),
            mode=mode,
            # wandb 0.31 writes nothing if it is offline and asked to resume, so each process writes its own file with that id.
            resume="allow" if mode == "online" else None,
            # Nothing about the machine, its user or its repository is stored with the curves.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                host="host",
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars of a step by name; there may be several calls per step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and close."""
        self.run.finish()


class MlflowTracker:
    """An MLflow run in `RUN/mlflow`, in the experiment `dagman`; a resume continues it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise MissingExtraError("MLflow", "mlflow") from None
        self.make_metric = Metric
        # MLflow 3 supports a store of files only on request.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        place = os.environ.get("MLFLOW_TRACKING_URI") or (folder.absolute() / "mlflow").as_uri()
        self.client: Any = MlflowClient(tracking_uri=place)
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = self.client.create_experiment(PROJECT) if found is None else found.experiment_id
        name = _name_run(folder, settings)
        runs = self.client.search_runs([experiment], f"tags.dagman = '{name}'")
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(experiment, tags={"dagman": name}, run_name=folder.resolve().name).info.run_id
        values = _flatten(settings.model_dump(mode="json"))
        self.client.log_batch(self.run, params=[Param(key, str(value)) for key, value in values.items()])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars of a step by name."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[self.make_metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run)


def _name_run(folder: Path, settings: Settings) -> str:
    """A name that stays the same when a run is resumed, and does not reveal its path."""
    return hash_bytes(f"{folder.resolve()}|{settings.seed}".encode())[:16]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
