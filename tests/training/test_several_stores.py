"""Several stores are read by their weights, every scan of each in its turn; what does not fit together is one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dagman.cli.training.planning import describe_plan
from dagman.errors import RunError
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.plan.rehearsal import plan_pretraining, prepare_rehearsal
from dagman.training.pretraining import pretrain
from dagman.training.run import Run
from dagman.training.start.mixture import split_weight
from dagman.training.views import Part, choose_from_parts, choose_scan


@pytest.fixture(scope="module")
def two(scans, tmp_path_factory) -> Path:
    """A store of two scans and one of one."""
    folder = tmp_path_factory.mktemp("two")
    prepare_store([scans / "body0.nii.gz", scans / "body1.nii.gz"], folder / "a", Preparation(spacing=4.0), workers=1)
    prepare_store([scans / "body2.nii.gz"], folder / "b", Preparation(spacing=4.0), workers=1)
    prepare_store([scans / "body2.nii.gz"], folder / "fine", Preparation(spacing=3.0), workers=1)
    prepare_store([scans / "body3.nii.gz"], folder / "flat", Preparation(spacing=4.0), workers=1)
    return folder


@pytest.mark.parametrize("weights", [(1, 1), (2, 1), (3, 5)])
def test_every_round_has_each_store_by_its_weight_and_each_scan_in_its_turn(weights):
    parts = [Part(weight=weights[0], scans=[f"a{i}" for i in range(40)]), Part(weight=weights[1], scans=["b0", "b1", "b2"])]
    drawn = [choose_from_parts(parts, 0, number) for number in range(240)]
    for first in range(0, 240, sum(weights)):
        letters = Counter(scan[0] for scan in drawn[first : first + sum(weights)])
        assert (letters["a"], letters["b"]) == weights
    # A store of 40 scans and one of 3: within each, no scan is seen twice before all have been.
    for letter in "ab":
        seen = Counter(scan for scan in drawn if scan[0] == letter)
        assert max(seen.values()) - min(seen.values()) <= 1
    assert drawn != [choose_from_parts(parts, 1, number) for number in range(240)]


def test_a_store_alone_is_read_as_ever():
    usable = ["x", "y", "z"]
    parts = [Part(weight=7, scans=usable)]
    assert [choose_from_parts(parts, 3, n) for n in range(9)] == [choose_scan(usable, 3, n) for n in range(9)]


def test_a_run_on_two_stores_tells_their_shares_and_goes_on_with_these_weights_alone(two, tiny, tmp_path):
    options = [*tiny, "train.steps=3", "train.monitor_every=9"]
    sources = [f"{two / 'a'}:2", f"{two / 'b'}:1"]
    run = pretrain(sources, tmp_path / "run", assignments=options)
    (line,) = [line for line in run.choices if line.startswith("stores: ")]
    assert line == "stores: a 67% of the views, 2 scans, 2.0 pairs per scan; b 33% of the views, 1 scan, 2.0 pairs per scan"
    assert Run(run.path).command["inputs"]["store"] == ["a", "b"]
    assert pretrain([f"{two / 'a'}:4", f"{two / 'b'}:2"], run.path).last_step == 3
    with pytest.raises(RunError, match="which are not the 3 of this store"):
        pretrain([two / "a", two / "b"], run.path)


def test_a_plan_takes_steps_on_the_views_of_the_run_on_several_stores(two, tiny):
    options = [*tiny, "train.steps=3", "train.monitor_every=9"]
    rehearsal = prepare_rehearsal([f"{two / 'a'}:2", f"{two / 'b'}:1"], assignments=options)
    assert [(part.weight, len(part.scans)) for part in rehearsal.dataset.parts] == [(2, 2), (1, 1)]
    assert sum(1 for _ in rehearsal.take(1)) == 1
    plan = plan_pretraining(rehearsal)
    assert plan.stores == (
        "stores: a 67% of the views, 2 scans, 2.0 pairs per scan; b 33% of the views, 1 scan, 2.0 pairs per scan",
    )
    assert describe_plan(plan)[1] == "stores       " + plan.stores[0].removeprefix("stores: ")
    with pytest.raises(RunError, match="absent: does not exist"):
        prepare_rehearsal([two / "a", two / "absent"])


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        (["a", "fine"], r"fine: was prepared differently \(3 mm\) than .*a \(4 mm\)"),
        (["a", "flat"], "flat: holds no scan large enough for a view"),
        (["a", "b:0"], "b:0: has a weight of 0"),
        (["a", "b:-1"], "b:-1: has a weight of -1. Remove it, or give it a weight above 0"),
        (["a", "b:two"], "b:two: the weight 'two' is not a number. Give a number above 0"),
        (["a", "b:nan"], "b:nan: the weight 'nan' is not a number"),
        (["a:2", "a:1"], "a: is given twice. Give it once, with one weight"),
        (["a:1.0001", "b"], "need more than 1000 pairs per round"),
    ],
)
def test_stores_that_do_not_fit_together_are_one_line(two, tiny, tmp_path, sources, text):
    with pytest.raises(RunError, match=text) as caught:
        pretrain([str(two / source) for source in sources], tmp_path / "run", assignments=[*tiny, "train.steps=2"])
    assert "\n" not in str(caught.value)


def test_a_store_among_scans_is_one_line(two, scans, tiny, tmp_path):
    with pytest.raises(RunError, match="Give only stores, or only scans"):
        pretrain([two / "a", scans / "body2.nii.gz"], tmp_path / "run", assignments=tiny)


def test_a_folder_whose_name_ends_like_a_weight_is_taken_as_it_stands(tmp_path):
    (tmp_path / "store:2").mkdir()
    assert split_weight(tmp_path / "store:2") == (tmp_path / "store:2", 1)
    assert split_weight(f"{tmp_path}/store:2:3") == (tmp_path / "store:2", 3)
    assert split_weight(f"{tmp_path}/other:0.5") == (tmp_path / "other", 0.5)
    assert split_weight(f"{tmp_path}/other:.5") == (tmp_path / "other", 0.5)
    assert split_weight(f"{tmp_path}/absent:store") == (tmp_path / "absent:store", 1)
