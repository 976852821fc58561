"""R ranks are one process: the same losses, gradients, targets and weights to rounding, for every preset, killed and gone on by
other numbers of ranks; and what they refuse.

Real processes over gloo, forked by `ranks.py`; one launch serves all tests.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dagman.errors import SettingsError
from dagman.records.journal import read_rows
from dagman.reports.provenance import flatten_values
from dagman.settings.presets import list_presets
from dagman.store.format import locate_scan
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.testing import make_body, write_nifti
from dagman.training.checkpoints import list_checkpoints
from dagman.training.learner import Learner
from dagman.training.parallel import replicas
from dagman.training.parallel.group import Group
from dagman.training.pretraining import pretrain
from dagman.training.run import Run

OPTIONS = ("model.embed=4", "train.batch=12", "train.micro_batch=2", "train.steps=3", "train.monitor_every=9")
OPTIONS += ("train.checkpoint_every=1",)
# Every preset, and the other ways to targets: without a queue all is sums over the ranks.
CASES = {name: (name, ()) for name in list_presets("methods")} | {
    "no queue": ("dagman", ("teacher.queue=0", "view.flip=0.5", "view.noise=0.1")),
    "centre": ("dagman", ("teacher.centering=mean", "teacher.temperature=schedule", "losses.symmetric=false")),
    "vit on two stores": ("dagman", ("model.backbone=vit", "model.embed=16", "model.heads=[2, 2, 2, 2]")),
}
# Ranks from step to step: each number begins, goes on and ends, and each change of it occurs.
ORDERS = dict(zip(CASES, itertools.cycle([(2, 1, 3), (3, 2, 1), (1, 3, 2), (2, 3, 1), (3, 1, 2), (1, 2, 3)]), strict=False))
# Its weights are many: one step, and nobody is killed.
CASES["cnn"], ORDERS["cnn"] = ("simmim", ("model.backbone=resnet3d:10", "train.steps=1")), (2,)
TIMEOUT_S = 8.0
"""Within which a rank that hangs is to be named: long for a busy machine, and no test waits for it alone."""


@pytest.fixture(scope="module")
def place(unmeasured, store, tiny, tmp_path_factory) -> Path:
    """What one, two and three ranks made: steps of each case, whole runs, runs that were disturbed, and what was refused."""
    folder = tmp_path_factory.mktemp("ranks")
    options = [*tiny, *OPTIONS]
    plan: list[dict] = []

    def add(name: str, ranks: int, *changes: str, source: Path = store.path, **more: object) -> None:
        job = {"ranks": ranks, "source": str(source), "out": str(folder / name), "method": "dagman"}
        plan.append({**job, "assignments": [*options, *changes], **more})

    # A pair of views for each of two ranks, without the reconstruction, whose weights are most of a checkpoint.
    light = ("train.batch=4", "train.steps=3", "losses.amip=0")
    add("whole", 2, *light)
    write_nifti(folder / "other.nii.gz", make_body((38, 40, 36), 9), 4.0)
    prepare_store(folder / "other.nii.gz", folder / "other", Preparation(spacing=4.0), workers=1)
    for case, (method, changes) in CASES.items():
        source = [f"{store.path}:2", f"{folder / 'other'}:1"] if "two stores" in case else str(store.path)
        job = {"relay": ORDERS[case], "source": source, "out": str(folder / case), "method": method}
        job["unwatched"] = case != "dagman"
        plan.append({**job, "assignments": [*options, "train.keep_checkpoints=9", *changes]})
    # Rank 1 dies in the second step, rank 0, which writes, in the third.
    launch = ["--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    add("killed", 2, *light, alone=True, torchrun=launch, kill=[[1, 1], [0, 2]])
    spawned = ["--standalone", "--nproc-per-node=2", "--start-method=spawn"]
    add("spawned", 2, *light, alone=True, torchrun=spawned, warn_parent=[0, 1])
    for how in ("stopped", "reading"):
        add(f"hung-{how}", 2, *light, f"train.rank_timeout={TIMEOUT_S}", alone=True, hang=[1, 1, how])
    add("warned", 2, *light, warn=[1, 1])
    add("not-finite", 2, *light, nan=[1, 1])
    for count, name in enumerate(("lost-one", "lost-two"), start=1):
        damaged = _copy_with_damage(store, folder / f"{name}-store", count)
        add(name, 2, *light, source=damaged)
    pretrain(folder / "lost-one-store", folder / "lost-one-alone", assignments=[*options, *light])
    fewer = shutil.copytree(store.path, folder / "fewer")
    _drop_scan(fewer)
    short = [*tiny, "train.steps=2"]
    add("refused-settings", 2, by_rank={"1": {"assignments": [*short, "seed=4"]}}, assignments=short)
    add("refused-scans", 2, by_rank={"1": {"source": str(fewer)}}, assignments=short)
    add("refused-version", 2, by_rank={"1": {"version": "0.0.1"}}, assignments=short)
    add("refused-few", 3, source=fewer, assignments=[*short, "train.batch=6"])
    add("refused-batch", 3, assignments=[*short, "train.batch=4"])
    add("refused-micro", 2, assignments=[*short, "train.batch=12", "train.micro_batch=4"])
    add("refused-absent", 2, source=folder / "absent", assignments=short)
    add("refused-unprepared", 2, source=folder / "other.nii.gz", assignments=short)
    add("refused-unshared", 2, by_rank={"1": {"out": str(folder / "elsewhere"), "unshared_s": 0.0}}, assignments=short)
    add("refused-misspelt", 2, assignments=["train.stepz=3"])
    add("refused-card", 2, assignments=[*short, "train.device=cuda:7"])
    add("refused-gloo", 2, without="gloo", assignments=short)
    (folder / "plan.json").write_text(json.dumps(plan))
    program = Path(__file__).with_name("ranks.py")
    subprocess.run([sys.executable, str(program), str(folder / "plan.json")], check=True, timeout=900, capture_output=True)
    return folder


def _copy_with_damage(store, folder: Path, count: int) -> Path:
    shutil.copytree(store.path, folder)
    for scan in [row.id for row in store.rows if min(row.shape) >= 16][:count]:
        path = locate_scan(folder, scan)
        path.write_bytes(path.read_bytes()[:100])
    return folder


def _drop_scan(folder: Path) -> None:
    from dagman.store.manifest import read_manifest, write_manifest

    rows = list(read_manifest(folder).values())
    (folder / "journal.jsonl").unlink(missing_ok=True)
    write_manifest(folder, rows[1:])


def _outcomes(place: Path, ranks: int) -> dict[str, list[str]]:
    """What each rank of each job ended with, by the name of its folder."""
    plan = [job for job in json.loads((place / "plan.json").read_text()) if job.get("ranks") == ranks and not job.get("alone")]
    told = [json.loads((place / f"plan.json.{ranks}.{rank}").read_text()) for rank in range(ranks)]
    return {Path(job["out"]).name: list(texts) for job, texts in zip(plan, zip(*told, strict=True), strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_and_gone_on_by_other_numbers_of_ranks_is_one_process_to_rounding(place, case):
    told = json.loads((place / f"{case}.json").read_text())
    killed, requeued = -signal.SIGKILL, 75
    assert told["codes"][0] == [0]
    for leg, codes in enumerate(told["codes"][1:]):
        last = leg + 1 == len(ORDERS[case])
        assert sorted(codes) == ([0] * len(codes) if last else [killed, *[requeued] * (len(codes) - 1)]), codes
    one, many = Run(place / f"{case}-one"), Run(place / case)
    assert len(many.steps) == len(one.steps) == len(ORDERS[case])
    assert len(many.monitors) == len(one.monitors) == (2 if case == "dagman" else 0)
    # A spread of distances of 50 mm is a difference of nearly equal numbers: its rounding is theirs.
    for ours, theirs in [*zip(many.steps, one.steps, strict=True), *zip(many.monitors, one.monitors, strict=True)]:
        assert flatten_values(ours) == pytest.approx(flatten_values(theirs), rel=2e-5, abs=1e-5)
    # Gradients, targets and weights after each step. A weight without a gradient follows the sign of its rounding, by AdamW.
    for step, apart in told["apart"].items():
        assert any(key.startswith("optimizer.exp_avg:") for key in apart)
        limits = {key: 1e-4 if key.endswith("qkv.bias") else 2e-5 for key in apart}
        if case.startswith("vit"):
            # Of its 16^3 weights for each channel, some hardly have a gradient.
            limits |= {key: 1e-3 for key in apart if key.endswith("encoder.patch_projection.weight") and ":" not in key}
        assert not {key: (step, far) for key, far in apart.items() if far > limits[key]}


def test_what_is_exchanged_is_counted_and_said(place):
    assert _outcomes(place, 2)["whole"] == ["", ""]
    many = Run(place / "whole")
    (line,) = [line for line in many.choices if line.startswith("ranks: ")]
    assert line.startswith("ranks: 2 over gloo, 2 views per step each, in 1 part; gradients of ")
    gradients = float(line.partition("gradients of ")[2].split()[0])
    # The line gives one decimal.
    assert all(row["communicated_mib"] >= gradients - 0.05 for row in many.timings)
    assert not any("communicated_mib" in row for row in Run(place / "dagman-one").timings)


def test_killed_ranks_are_started_again_by_torchrun_and_the_run_ends_with_the_same_bits(place):
    told = (place / "killed.torchrun.txt").read_text()
    # Twice, and no third time: that the others end because one is gone costs no restart of its own.
    assert told.count("terminated with signal SIGKILL") == 2, told
    assert told.count("torch.multiprocessing.spawn.ProcessExitedException") == 2, told
    whole, killed = place / "whole", place / "killed"
    last = Path("checkpoints") / "step-000003"
    names = [last / f"{name}.safetensors" for name in ("student", "teacher", "heads", "optimizer")]
    for name in [*names, Path("metrics.jsonl"), Path("monitors.jsonl"), Path("encoder") / "model.safetensors"]:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("how", "text"), [("stopped", r"has not answered for \d+ s"), ("reading", r"has been reading the views of step 2 for \d+ s")]
)
def test_a_rank_that_hangs_is_named_within_the_set_time_and_the_others_ask_to_be_started_again(place, how, text):
    assert json.loads((place / f"hung-{how}.codes.json").read_text()) == {"0": 75}
    (line,) = [line for line in (place / f"hung-{how}.0.txt").read_text().splitlines() if line.startswith("dagman: ")]
    assert re.fullmatch(rf"dagman: rank 1 \(.*, process \d+\) {text}\. Start all ranks again to resume .*", line), line
    assert TIMEOUT_S <= int(re.search(r"for (\d+) s", line)[1]) <= 2 * TIMEOUT_S
    assert Run(place / f"hung-{how}").last_step == 1


def test_a_warning_to_one_rank_ends_all_after_the_same_step_with_a_checkpoint(place):
    assert _outcomes(place, 2)["warned"] == ["requeue", "requeue"]
    assert Run(place / "warned").last_step == 2
    assert list_checkpoints(place / "warned")[-1] == 2


def test_ranks_go_back_and_skip_a_step_together_that_is_not_finite_for_one_of_them(place):
    assert _outcomes(place, 2)["not-finite"] == ["", ""]
    run = Run(place / "not-finite")
    assert [row["step"] for row in run.steps] == [1, 3]
    assert run.steps[0] == Run(place / "whole").steps[0]
    (text,) = [row["text"] for row in run.warnings if row["key"] == "skipped-2"]
    assert "returned to step 1, and skips the failed step (1 of at most 3)" in text
    # What is kept to be replayed is the whole step, not the writing rank's share.
    assert len(json.loads((run.path / "broken" / "step-000002" / "state.json").read_text())["crops"]) == 2


def test_an_unreadable_scan_is_replaced_and_counted_alike_by_ranks_and_by_one_process(place):
    assert _outcomes(place, 2)["lost-one"] == ["", ""]
    one, many = Run(place / "lost-one-alone"), Run(place / "lost-one")
    assert [row | {"reason": ""} for row in read_rows(many.path / "unreadable.jsonl")] == [
        row | {"reason": ""} for row in read_rows(one.path / "unreadable.jsonl")
    ]
    assert any("1 of 3 so far" in row["text"] for row in many.warnings)
    for ours, theirs in zip(many.steps, one.steps, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


def test_ranks_end_together_past_the_share_of_unreadable_scans(place):
    told = _outcomes(place, 2)["lost-two"]
    assert "2 of 3 scans cannot be read, more than train.unreadable = 0.1 allows" in told[0]
    assert told[1] == "exit 2"


@pytest.mark.parametrize(
    ("name", "ranks", "text"),
    [
        ("settings", 2, "ranks 0 and 1 differ in seed (0 and 4). Start every rank with the same command and version."),
        ("scans", 2, "ranks 0 and 1 differ in store (3 scans with fingerprint "),
        ("version", 2, "and 0.0.1). Start every rank with the same command and version."),
        ("few", 3, "3 ranks are more than the 2 scans that are large enough for a view. Start at most 2 ranks"),
        ("batch", 3, "train.batch = 4 is 2 pairs of views, which 3 ranks cannot share evenly. Set train.batch=6, or"),
        ("micro", 2, "train.micro_batch = 4 does not divide the 6 views of each of 2 ranks"),
        ("absent", 2, "absent: does not exist. Give a store."),
        (
            "unprepared",
            2,
            "other.nii.gz: 2 ranks need a store, and this is not one. Prepare it first: dagman prepare SCANS --out STORE.",
        ),
        ("misspelt", 2, "Nearest: train.steps"),
        ("card", 2, "there is no CUDA device 7"),
        ("gloo", 2, "2 ranks need gloo, which this build of torch lacks"),
    ],
)
def test_what_ranks_cannot_do_together_is_one_line_of_one_rank_before_the_first_step(place, name, ranks, text):
    told = _outcomes(place, ranks)[f"refused-{name}"]
    assert text in told[0]
    assert "\n" not in told[0]
    assert told[1:] == ["exit 2"] * (ranks - 1)
    assert not (place / f"refused-{name}" / "settings.toml").exists()


def test_a_rank_that_does_not_see_the_run_folder_is_refused_before_the_first_step(place):
    told = _outcomes(place, 2)["refused-unshared"]
    assert told[0] == "exit 2"
    assert told[1].startswith(f"{place / 'elsewhere'}: rank 1 does not see the run folder that rank 0 writes to. Give all ranks ")
    assert not (place / "elsewhere").exists()
    assert not (place / "refused-unshared").exists()


def test_torchrun_spawns_ranks_and_hands_a_stop_on_to_them(place):
    told = (place / "spawned.torchrun.txt").read_text()
    assert told.count("requeue") == 2, told
    run = Run(place / "spawned")
    assert (run.last_step, list_checkpoints(run.path)[-1]) == (2, 2)
    assert run.steps == Run(place / "whole").steps[:2]


def test_gradients_are_summed_once_per_step_while_the_last_backward_pass_runs(make_settings, make_dataset, monkeypatch):
    settings, finished, sums = make_settings("train.batch=12", method="simmim"), set(), []
    plain = replicas._sum_gradients

    @functools.wraps(plain)
    def note(group, bucket):
        sums.append((bucket.buffer().numel(), len(finished)))
        return plain(group, bucket)

    monkeypatch.setattr(replicas, "_sum_gradients", note)
    # Alone in a group that believes it has a second rank.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        learner = Learner(settings, device="cpu", precision="fp32", group=Group(0, 2))
        weights = dict(learner.student.named_parameters())
        with learner.joined():
            for name, weight in weights.items():
                weight.register_post_accumulate_grad_hook(lambda _, name=name: finished.add(name))
            pairs = learner.draw_pairs(make_dataset(settings)[0], 0, range(6))
            backward = torch.Tensor.backward

            def run(loss, *rest):
                finished.clear()
                backward(loss, *rest)

            monkeypatch.setattr(torch.Tensor, "backward", run)
            # After the first step torch cuts the gradients into parts, in the order in which they are finished.
            for step in (0, 1):
                sums.clear()
                learner.advance(pairs, step)
    finally:
        dist.destroy_process_group()
    assert len(pairs) > 1
    assert sum(count for count, _ in sums) == sum(weight.numel() for weight in weights.values())
    assert sums[0][1] < len(weights)


@pytest.mark.skipif(torch.distributed.is_nccl_available(), reason="this torch has NCCL")
def test_cards_without_nccl_are_one_line():
    with pytest.raises(SettingsError, match="2 ranks on CUDA devices need NCCL, which this build of torch lacks"):
        Group(0, 2).use_device(torch.device("cuda:0"), 1.0)
