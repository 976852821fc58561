"""What `dagman.pretrain` refuses, and what it tells: one line each, before anything is lost; and scans given in a store's place."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import resource
import shutil
from pathlib import Path

import pytest

from dagman.errors import DagmanError, RunError, SettingsError, StoreError
from dagman.store.manifest import Store, write_manifest
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.pretraining import pretrain
from dagman.training.run import Run


@pytest.fixture(scope="module")
def begun(store, tiny, tmp_path_factory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("begun") / "run"
    pretrain(store.path, out, assignments=[*tiny, "train.steps=2", "train.monitor_every=2"])
    return out


def _refuse(kind: type[DagmanError], *arguments, **options) -> str:
    with pytest.raises(kind) as caught:
        pretrain(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _list_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_repeated_pretraining_continues_its_run_and_refuses_other_settings_by_name(begun, store):
    before = _list_files(begun)
    text = _refuse(RunError, store.path, begun, assignments=["seed=5"])
    assert "seed is 0 in the run and 5 here" in text
    assert _list_files(begun) == before
    assert pretrain(store.path, begun).last_step == 2
    weights = "encoder/model.safetensors"
    assert _list_files(begun)[weights] == before[weights]


def test_resume_refuses_to_begin_a_run(store, tmp_path):
    text = _refuse(RunError, store.path, tmp_path / "run", resume=True)
    assert text == f"{tmp_path / 'run'}: holds no run to resume. Omit --resume to start one, or give the folder of a run."
    assert not (tmp_path / "run").exists()


def test_a_folder_or_file_that_is_not_a_run_is_refused_and_left_alone(store, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    text = _refuse(RunError, store.path, tmp_path / "letters")
    assert text == f"{tmp_path / 'letters'}: exists and is not a run. Choose another folder for --out."
    text = _refuse(RunError, store.path, tmp_path / "letters" / "a.txt")
    assert text.endswith("a.txt: is a file. Choose another folder for --out.")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["a.txt"]


def test_a_resume_with_other_settings_names_each_with_both_values(begun, store):
    before = _list_files(begun)
    options = {"method": "smit", "assignments": ["optim.lr=0.5", "train.steps=2", "teacher.queue=auto", "masking.ratio=0.7"]}
    text = _refuse(RunError, store.path, begun, resume=True, **options)
    assert text.startswith(f"{begun}: method is dagman in the run and smit here; optim.lr is 0.0003 in the run and 0.5 here.")
    # What is equal, or left to `auto`, does not differ.
    assert "train.steps" not in text
    assert "queue" not in text
    assert "ratio" not in text
    assert _list_files(begun) == before


def test_a_resume_may_change_what_changes_no_weight(begun, store, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    changes = ["train.checkpoint_every=7", "train.workers=0", "train.keep_checkpoints=1", "train.device=cpu"]
    assert pretrain(store.path, tmp_path / "run", resume=True, assignments=changes).last_step == 2


def test_a_resume_with_another_store_is_refused(begun, scans, tmp_path):
    other = prepare_store([scans / "body0.nii.gz", scans / "body1.nii.gz"], tmp_path / "store", Preparation(spacing=4.0), workers=1)
    text = _refuse(RunError, other.path, begun, resume=True)
    assert text == (
        f"{begun}: was trained on 3 scans, which are not the 2 of this store. "
        "Resume with the same store, or start in another folder."
    )


def test_a_resume_with_the_same_scans_prepared_in_another_way_is_refused(begun, store, scans, tmp_path):
    finer = prepare_store(scans, tmp_path / "finer", Preparation(spacing=3.0), workers=1)
    text = _refuse(RunError, finer.path, begun, resume=True)
    assert text.startswith(f"{finer.path}: view.spacing = 4, but the store was prepared at 3 mm.")
    shutil.copytree(store.path, tmp_path / "cropped")
    rows = [dataclasses.replace(row, crop_start=(1, 0, 0)) for row in store.rows]
    (tmp_path / "cropped" / "journal.jsonl").unlink(missing_ok=True)
    write_manifest(tmp_path / "cropped", rows)
    text = _refuse(RunError, tmp_path / "cropped", begun, resume=True)
    assert text.startswith(f"{begun}: was trained on the same scans prepared differently")


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_space(store, tiny, tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    options = [*tiny, "train.steps=3", "train.checkpoint_every=1"]
    pretrain(store.path, whole, assignments=options)

    limit = (whole / "checkpoints" / "step-000003" / "student.safetensors").stat().st_size // 2

    def notify(name, values):
        # Checkpoints are written in the background, one at a time: that of step 1 is whole only once that of step 2 has begun.
        if name == "step" and values["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        text = _refuse(RunError, store.path, out, assignments=options, on_event=notify)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert text == (f"{out}: there is no disk space left. Free some space, then repeat the command; the last checkpoint is intact.")
    assert not list(out.rglob("*.partial.*"))
    assert pretrain(store.path, out, resume=True).last_step == 3
    for name in ("metrics.jsonl", "monitors.jsonl", "encoder/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_resume_with_a_damaged_checkpoint_is_one_line(begun, store, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").write_text("{")
    assert "step-000002: is damaged" in _refuse(RunError, store.path, tmp_path / "run", resume=True)


def test_a_resume_on_other_arithmetic_says_so(begun, store, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-000002" / "state.json"
    state = json.loads(path.read_text())
    del state["checksum"]
    path.write_text(json.dumps(state | {"threads": 64, "precision": "bf16"}))
    told = []
    pretrain(store.path, tmp_path / "run", resume=True, on_event=lambda name, values: told.append((name, values.get("text"))))
    warnings = [text for name, text in told if name == "warning"]
    assert warnings == [
        "precision: fp32, but bf16 up to here, so the weights will differ from those of an uninterrupted run.",
        "threads: 1, but 64 up to here, so the weights will differ from those of an uninterrupted run.",
    ]


def test_two_processes_do_not_write_one_run(begun, store):
    with open(begun / ".lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 7 on node3")
        file.flush()
        text = _refuse(RunError, store.path, begun, resume=True)
    assert text == f"{begun}: process 7 on node3 is writing here. Wait until it ends, or choose another folder."
    # The process was killed, here or on another host: what it left keeps nobody out.
    assert pretrain(store.path, begun, resume=True).last_step == 2


def test_a_refused_run_leaves_no_folder(store, tiny, tmp_path):
    _refuse(RunError, store.path, tmp_path / "new" / "run", assignments=[*tiny, "view.side=128"])
    assert list(tmp_path.iterdir()) == []


def test_a_view_larger_than_every_scan_names_the_largest_and_can_be_mended(store, tiny, tmp_path):
    text = _refuse(RunError, store.path, tmp_path / "run", assignments=[*tiny, "view.side=128"])
    assert text.startswith("no scan is large enough for a view of 128 voxels, which needs 64 along each axis; the largest ")
    assert text.endswith("Set view.side=64.")
    options = [*tiny, "train.steps=1", "train.monitor_every=9"]
    assert pretrain(store.path, tmp_path / "run", assignments=options).last_step == 1


def test_a_spacing_that_is_not_the_stores_is_refused_and_the_stores_is_recorded(store, begun, tiny, tmp_path):
    text = _refuse(RunError, store.path, tmp_path / "run", assignments=[*tiny, "view.spacing=2"])
    assert text.startswith(f"{store.path}: view.spacing = 2, but the store was prepared at 4 mm. Set view.spacing=4")
    plain = [line for line in tiny if not line.startswith("view.spacing")]
    run = pretrain(store.path, tmp_path / "run", assignments=[*plain, "train.steps=1"])
    assert run.settings.view.spacing == 4


def test_a_store_of_another_version_and_a_path_that_is_not_there_are_refused(store, tiny, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    info = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps(info | {"format": 99}))
    text = _refuse(StoreError, tmp_path / "store", tmp_path / "run", assignments=tiny)
    assert "is a store of format 99" in text
    text = _refuse(DagmanError, tmp_path / "absent", tmp_path / "run", assignments=tiny)
    assert text.startswith(f"{tmp_path / 'absent'}: does not exist")


def test_misspelt_settings_are_refused_before_a_folder_is_made(store, tmp_path):
    assert "Nearest: simmim" in _refuse(SettingsError, store.path, tmp_path / "run", method="simmin")
    assert "Nearest: train.steps" in _refuse(SettingsError, store.path, tmp_path / "run", assignments=["train.step=3"])
    assert not (tmp_path / "run").exists()


def test_scans_given_are_prepared_first_and_give_the_run_of_their_store(scans, store, tiny, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"")
    options = [*tiny, "train.steps=2", "train.monitor_every=2"]
    told, prepared = [], []
    sources = [*sorted(scans.iterdir(), reverse=True), tmp_path / "bad.nii.gz"]
    run = pretrain(
        sources,
        tmp_path / "run",
        assignments=options,
        on_event=lambda name, values: told.append(values.get("text")),
        on_preparation=prepared.append,
    )
    assert [row.id for row in Store(run.path / "store").rows] == [row.id for row in store.rows]
    assert f"store: 4 scans prepared, 1 rejected: see {run.path / 'store' / 'rejected.csv'}" in told
    assert [type(event).__name__ for event in prepared] == ["Estimate", *["Progress"] * 4]
    straight = pretrain(store.path, tmp_path / "straight", assignments=options)
    assert (run.path / "metrics.jsonl").read_bytes() == (straight.path / "metrics.jsonl").read_bytes()
    weights = [(one.encoder_folder / "model.safetensors").read_bytes() for one in (run, straight)]
    assert weights[0] == weights[1]
    # Repeated, nothing is prepared twice.
    again = []
    pretrain(sources, tmp_path / "run", resume=True, on_preparation=again.append)
    assert (again[0].series, again[0].done) == (0, 4)


def test_settings_without_effect_are_warned_of_once_and_kept_in_the_notes(store, tiny, tmp_path):
    options = [*tiny, "train.steps=2", "masking.hint_pool=0.2", "teacher.temperature_end=0.06"]
    told = []
    run = pretrain(
        store.path,
        tmp_path / "run",
        method="dagman-random-mask",
        assignments=options,
        on_event=lambda name, values: told.append((name, values.get("text"))),
    )
    idle = [text for name, text in told if name == "warning" and "has no effect" in text]
    assert idle == [
        'masking.hint_pool has no effect: masking.kind is "random".',
        'teacher.temperature_end has no effect: teacher.temperature is "entropy".',
    ]
    shutil.rmtree(run.path / "checkpoints")
    resumed = pretrain(store.path, run.path, resume=True)
    assert [row["text"] for row in resumed.warnings if "has no effect" in row["text"]] == idle
    assert resumed.last_step == Run(run.path).last_step == 2


@pytest.fixture(scope="module")
def mixed(store, tmp_path_factory) -> Path:
    """The store, with one of its scans as MR."""
    folder = tmp_path_factory.mktemp("mixed") / "store"
    shutil.copytree(store.path, folder)
    (folder / "journal.jsonl").unlink(missing_ok=True)
    large = next(row.id for row in store.rows if min(row.shape) >= 32)
    rows = [dataclasses.replace(row, modality="MR", scale=(0.0, 100.0)) if row.id == large else row for row in store.rows]
    write_manifest(folder, rows)
    return folder


def test_a_mixture_of_modalities_is_asked_for(mixed, tiny, tmp_path):
    text = _refuse(RunError, mixed, tmp_path / "run", assignments=tiny)
    assert text == f"{mixed}: the store holds 3 CT and 1 MR scans. Choose what to train on: --modality ct, mr, or all."
    options = [*tiny, "train.steps=1", "train.monitor_every=1"]
    seen = {}
    for modality in ("ct", "all"):
        run = pretrain(mixed, tmp_path / modality, assignments=[*options, f"view.modality={modality}"])
        assert run.settings.view.modality == modality
        seen[modality] = json.loads((run.encoder_folder / "config.json").read_text())["modalities"]
    assert seen == {"ct": ["CT"], "all": ["CT", "MR"]}


def test_a_modality_that_the_store_does_not_hold_is_refused(store, tiny, tmp_path):
    text = _refuse(RunError, store.path, tmp_path / "run", assignments=[*tiny, "view.modality=mr"])
    assert text == f"{store.path}: holds no MR, only CT. Correct --modality, or omit it."


def test_very_many_passes_over_few_scans_are_refused_until_asked_for(store, tiny, tmp_path):
    options = [*tiny, "train.steps=50000", "train.batch=4"]
    text = _refuse(RunError, store.path, tmp_path / "run", assignments=options)
    assert text.startswith("each of 3 usable scans would be seen 33,333 times in 50,000 steps of 4 views")
    assert "--set train.steps=15000 gives 10,000 passes" in text
    assert "--many-passes" in text
    assert not (tmp_path / "run" / "settings.toml").exists()
