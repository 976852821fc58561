"""R ranks are one process: the same losses, gradients, targets and weights to rounding, for every preset; and what they refuse.

Real processes over gloo, forked by `ranks.py`; one launch serves all tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dagman.settings.presets import list_presets
from dagman.training.pretraining import pretrain
from dagman.training.run import Run

OPTIONS = ("train.batch=12", "train.micro_batch=2", "train.monitor_every=9", "train.checkpoint_every=1")
# Every preset, and the other ways to targets: without a queue all is sums over the ranks.
CASES = {name: (name, ("train.steps=1",)) for name in list_presets("methods")} | {
    "dagman": ("dagman", ("train.steps=2",)),
    "no queue": ("dagman", ("train.steps=2", "teacher.queue=0", "view.flip=0.5", "view.noise=0.1")),
    "centre": ("dagman", ("train.steps=2", "teacher.centering=mean", "teacher.temperature=schedule", "losses.symmetric=false")),
}
RANKS = (2, 3)


@pytest.fixture(scope="module")
def place(store, tiny, tmp_path_factory) -> Path:
    """Runs `<case>-<ranks>` of a step or two by one, two and three ranks, and what those that cannot be shared ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    plan = []
    for case, (method, changes) in CASES.items():
        options = [*tiny, *OPTIONS, *changes]
        pretrain(store.path, folder / f"{case}-1", method=method, assignments=options)
        plan += [
            {
                "ranks": ranks,
                "source": str(store.path),
                "out": str(folder / f"{case}-{ranks}"),
                "method": method,
                "assignments": options,
            }
            for ranks in RANKS
        ]
    # Begun by one rank, gone on by two and by three.
    for ranks in RANKS:
        out = shutil.copytree(folder / "dagman-1", folder / f"resumed-{ranks}")
        shutil.rmtree(out / "checkpoints" / "step-000002")
        plan.append({"ranks": ranks, "source": str(store.path), "out": str(out), "assignments": []})
    refused = {
        "settings": (2, {"by_rank": {"1": {"assignments": [*tiny, "train.steps=2", "seed=4"]}}}),
        "scans": (2, {"by_rank": {"1": {"source": str(folder / "fewer")}}}),
        "batch": (3, {"assignments": [*tiny, "train.batch=4"]}),
        "micro": (2, {"assignments": [*tiny, "train.batch=12", "train.micro_batch=4"]}),
        "absent": (2, {"source": str(folder / "absent")}),
        "misspelt": (2, {"assignments": ["train.stepz=3"]}),
    }
    fewer = shutil.copytree(store.path, folder / "fewer")
    _drop_scan(fewer)
    for name, (ranks, changes) in refused.items():
        standard = {"source": str(store.path), "out": str(folder / f"refused-{name}"), "assignments": [*tiny, "train.steps=2"]}
        plan.append({"ranks": ranks, **standard, **changes})
    (folder / "plan.json").write_text(json.dumps(plan))
    program = Path(__file__).with_name("ranks.py")
    subprocess.run([sys.executable, str(program), str(folder / "plan.json")], check=True, timeout=300, capture_output=True)
    return folder


def _drop_scan(folder: Path) -> None:
    from dagman.store.manifest import read_manifest, write_manifest

    rows = list(read_manifest(folder).values())
    (folder / "journal.jsonl").unlink(missing_ok=True)
    write_manifest(folder, rows[1:])


def _outcomes(place: Path, ranks: int) -> dict[str, list[str]]:
    """What each rank of each run ended with, by the run's folder."""
    plan = [run for run in json.loads((place / "plan.json").read_text()) if run["ranks"] == ranks]
    told = [json.loads((place / f"plan.json.{ranks}.{rank}").read_text()) for rank in range(ranks)]
    return {Path(run["out"]).name: list(texts) for run, texts in zip(plan, zip(*told, strict=True), strict=True)}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", CASES)
def test_ranks_are_one_process_to_rounding(place, case, ranks):
    assert _outcomes(place, ranks)[f"{case}-{ranks}"] == [""] * ranks
    one, many = Run(place / f"{case}-1"), Run(place / f"{case}-{ranks}")
    for ours, theirs in zip(many.steps, one.steps, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=2e-5)
    folders = [run.path / "checkpoints" / "step-000001" for run in (many, one)]
    # After one step AdamW's first moment is the gradient.
    for name in ("optimizer", "heads"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in folders)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key.startswith(("exp_avg:", "targets.")):
                np.testing.assert_allclose(ours[key], value, rtol=1e-3, atol=2e-5 * np.abs(value).max(initial=1e-6), err_msg=key)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_goes_on_with_another_number_of_ranks(place, ranks):
    assert _outcomes(place, ranks)[f"resumed-{ranks}"] == [""] * ranks
    one, many = Run(place / "dagman-1"), Run(place / f"resumed-{ranks}")
    assert many.steps[0] == one.steps[0]
    assert many.steps[1] == pytest.approx(one.steps[1], rel=2e-5)
    assert many.last_step == 2


def test_what_is_exchanged_is_counted_and_said(place):
    many = Run(place / "dagman-2")
    (line,) = [line for line in many.choices if line.startswith("ranks: ")]
    assert line.startswith("ranks: 2 over gloo, 6 views a step each in 3 parts; gradients of ")
    gradients = float(line.partition("gradients of ")[2].split()[0])
    assert all(row["communicated_mib"] >= gradients for row in many.timings)
    assert not any("communicated_mib" in row for row in Run(place / "dagman-1").timings)


@pytest.mark.parametrize(
    ("name", "ranks", "text"),
    [
        ("settings", 2, "ranks 0 and 1 differ: seed is 0 and 4"),
        ("scans", 2, "ranks 0 and 1 differ: scans is 3 and 2"),
        ("batch", 3, "train.batch = 4 is 2 pairs of views, which 3 ranks cannot share evenly. Set train.batch=6, or"),
        ("micro", 2, "train.micro_batch = 4 does not divide the 6 views of each of 2 ranks"),
        ("absent", 2, "2 ranks read a store, and "),
        ("misspelt", 2, "Nearest: train.steps"),
    ],
)
def test_what_ranks_cannot_do_together_is_one_line_of_one_rank_before_the_first_step(place, name, ranks, text):
    told = _outcomes(place, ranks)[f"refused-{name}"]
    assert text in told[0]
    assert told[1:] == ["exit 2"] * (ranks - 1)
    assert not (place / f"refused-{name}" / "settings.toml").exists()
