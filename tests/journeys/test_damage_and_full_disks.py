"""Bit rot, edited files, a full disk and deleted folders: nothing wrong is read in silence, and every end is one line.

The fuzz of a run's files is deterministic by its seed; every outcome is either a success or one line of ours.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dagman.encoder.folder import write_encoder
from dagman.encoder.loading import load_encoder
from dagman.errors import DagmanError, EncoderError, RunError, StoreError, explain_system_error
from dagman.reports.run import curves, monitors, run_page
from dagman.reports.run.run_page import render_run
from dagman.scans.phantom import write_cohort
from dagman.store.format import locate_scan
from dagman.store.manifest import Store
from dagman.store.writer import prepare_store
from dagman.testing import TINY_SETTINGS
from dagman.training.pretraining import pretrain
from dagman.training.run import Run

TINY = (*TINY_SETTINGS, "train.steps=2", "view.spacing=2")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("cohort")
    write_cohort(place / "cohort", patients=2, seed=0, spacing=8.0)
    return prepare_store([place / "cohort" / "scans"], place / "store", workers=1).path


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory) -> Path:
    return pretrain(store, tmp_path_factory.mktemp("runs") / "run", assignments=TINY).path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _flip(path: Path, place: random.Random) -> None:
    data = bytearray(path.read_bytes())
    where = place.randrange(len(data))
    data[where] ^= 1 << place.randrange(8)
    path.write_bytes(bytes(data))


def test_no_flipped_bit_of_a_stored_scan_is_read_in_silence(store, tmp_path):
    place, copied = random.Random(0), Path(shutil.copytree(store, tmp_path / "store"))
    row = Store(copied).rows[0]
    path = locate_scan(copied, row.id)
    whole = path.read_bytes()
    for _ in range(300):
        _flip(path, place)
        with pytest.raises(StoreError, match="is damaged"):
            Store(copied).crop(row.id, (0, 0, 0), (1, 1, 1))
        path.write_bytes(whole)
    assert np.array_equal(Store(copied).read(row.id).voxels, Store(store).read(row.id).voxels)


def test_a_scan_is_compared_with_its_checksum_once_a_process(store, monkeypatch):
    opened = Store(store)
    checksum, hashed = opened.rows[0].checksum, []
    monkeypatch.setattr("dagman.store.manifest.hash_file", lambda path: hashed.append(path) or checksum)
    for _ in range(3):
        opened.crop(opened.rows[0].id, (0, 0, 0), (2, 2, 2))
    assert len(hashed) == 1


def test_a_repeated_preparation_makes_a_rotten_file_again(tmp_path):
    write_cohort(tmp_path / "cohort", patients=2, seed=1, spacing=8.0)
    path = prepare_store([tmp_path / "cohort" / "scans"], tmp_path / "store", workers=1).path
    rows = Store(path).rows
    scan = locate_scan(path, rows[1].id)
    whole = scan.read_bytes()
    _flip(scan, random.Random(1))
    again = prepare_store([tmp_path / "cohort" / "scans"], path, workers=1)
    assert (again.kept, again.already) == (2, 1)
    assert scan.read_bytes() == whole


@pytest.mark.parametrize("name", ["student", "teacher", "heads", "optimizer"])
def test_a_flipped_bit_of_a_checkpoint_is_refused(run, store, name):
    path = run / "checkpoints" / "step-000002" / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    before = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(before.replace("steps = 2", "steps = 2"))
    with pytest.raises(RunError, match=rf"the checksum of {name}\.safetensors differs"):
        pretrain(store, run)


def test_flipped_and_broken_weights_of_an_encoder_are_refused(run, tmp_path):
    path = run / "encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(EncoderError, match="is damaged or was replaced"):
        load_encoder(run, device="cpu")
    encoder = load_encoder(run / "encoder-student", device="cpu")
    state = encoder.network.state_dict()
    name = next(iter(state))
    state[name] = torch.full_like(state[name], float("nan"))
    write_encoder(tmp_path / "broken", encoder.config, state)
    with pytest.raises(EncoderError, match="not finite numbers"):
        load_encoder(tmp_path / "broken", device="cpu")


def test_an_encoder_written_before_checksums_loads(run):
    config = run / "encoder" / "config.json"
    values = json.loads(config.read_text())
    assert len(values.pop("checksum")) == 32
    config.write_text(json.dumps(values))
    state = load_file(run / "encoder" / "model.safetensors")
    save_file(state, run / "encoder" / "model.safetensors")
    assert load_encoder(run, device="cpu").config.step == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"step": 999999}, "its state.json is that of step 999999"),
        ({"step": "two"}, "its state.json is that of step two"),
        ({"log_temperatures": 3}, "lacks its temperatures or checksums"),
        ({"format": 99}, "is of checkpoint format 99"),
        ({"store": "another", "checksum": "0"}, "state.json does not match its own checksum"),
    ],
)
def test_an_edited_state_is_refused_in_one_line(run, store, change, text):
    path = run / "checkpoints" / "step-000002" / "state.json"
    # As earlier releases wrote it, without a checksum, unless the change names one.
    state = json.loads(path.read_text())
    del state["checksum"]
    path.write_text(json.dumps(state | change))
    with pytest.raises(RunError, match=text):
        pretrain(store, run)


def test_settings_edited_after_a_checkpoint_are_refused(run, store):
    path = run / "settings.toml"
    path.write_text(path.read_text().replace("ratio = 0.7", "ratio = 0.6"))
    with pytest.raises(RunError, match=r"was changed after the last checkpoint"):
        pretrain(store, run)


def test_settings_that_were_cut_short_do_not_become_the_defaults(finished, tmp_path):
    text = (finished / "settings.toml").read_text()
    cuts = [at for at, letter in enumerate(text) if letter == "\n" and at < text.index("micro_batch")]
    assert len(cuts) > 50
    for at in cuts:
        (tmp_path / "settings.toml").write_text(text[:at])
        with pytest.raises(RunError, match="is damaged"):
            _ = Run(tmp_path).settings


def _draw_equal_once(monkeypatch) -> dict[tuple[str, ...], Any]:
    """Of damaged copies of one run, what is drawn from equal settings and rows is equal, and is drawn once."""
    drawn: dict[tuple[str, ...], Any] = {}

    def remember(place: Any, name: str, describe: Callable[..., str]) -> None:
        draw = getattr(place, name)

        def recall(*given: Any, **named: Any) -> Any:
            key = (name, describe(*given, **named))
            if key not in drawn:
                drawn[key] = draw(*given, **named)
            return drawn[key]

        monkeypatch.setattr(place, name, recall)

    # The files of the gallery are not among those that are damaged.
    remember(run_page, "show_gallery", lambda run, settings, page=None: settings.model_dump_json())
    # As text: a NaN differs from itself.
    for place in (curves, monitors):
        for name in [name for name, one in vars(place).items() if name.startswith("draw_") and one.__module__ == place.__name__]:
            remember(place, name, lambda *given, **named: repr((given, named)))
    return drawn


@pytest.mark.slow
def test_no_damage_to_a_runs_small_files_ends_in_a_traceback(finished, store, tmp_path, monkeypatch):
    drawn = _draw_equal_once(monkeypatch)
    place = random.Random(7)
    names = ["settings.toml", "command.json", "metrics.jsonl", "monitors.jsonl", "timing.jsonl", "notes.jsonl"]
    names += ["encoder/config.json", "checkpoints/step-000002/state.json"]
    outcomes = {"fine": 0, "refused": 0}
    for number in range(42):
        run = Path(shutil.copytree(finished, tmp_path / f"run-{number}"))
        path = run / names[number % len(names)]
        data = bytearray(path.read_bytes())
        # As shares of the length: what the files hold of time and machine must not change which damages are tried.
        for _ in range(place.choice([1, 5, 50])):
            data[int(place.random() * len(data))] = place.randrange(256)
        path.write_bytes(bytes(data[: int(len(data) * place.choice([1.0, 0.5]))]))
        for read in (
            lambda path: render_run(Run(path)),
            lambda path: load_encoder(path, device="cpu"),
            lambda path: pretrain(store, path),
        ):
            try:
                read(run)
                outcomes["fine"] += 1
            except DagmanError:
                outcomes["refused"] += 1
        shutil.rmtree(run)
    assert sum(outcomes.values()) == 42 * 3
    assert outcomes["refused"] > 0
    assert len(drawn) > 10, "what damage changed was drawn too"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_run_folder_deleted_while_it_trains_is_one_line(store, tmp_path):
    out = tmp_path / "run"

    def delete(name, values):
        if name == "step":
            shutil.rmtree(out)

    with pytest.raises(RunError, match="was deleted during the run"):
        pretrain(store, out, assignments=TINY, on_event=delete)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_store_deleted_while_it_is_prepared_is_one_line(tmp_path):
    write_cohort(tmp_path / "cohort", patients=2, seed=2, spacing=8.0)

    def delete(event):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)

    with pytest.raises(StoreError, match=r"was deleted while scans were prepared into it|cannot be written"):
        prepare_store([tmp_path / "cohort" / "scans"], tmp_path / "store", workers=1, on_event=delete)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/a.csv"), "out/a.csv: there is no disk space left"),
        (RuntimeError("Error writing: I/O error: No space left on device (os error 28)"), "there is no disk space left"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: permission denied. Check that the file"),
        (ValueError("a fault of ours"), None),
    ],
)
def test_what_the_system_refuses_is_one_line_and_our_own_faults_keep_their_traceback(error, text):
    found = explain_system_error(error)
    assert found is None if text is None else found.startswith(text)
