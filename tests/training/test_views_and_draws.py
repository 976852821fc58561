"""Views, draws and augmentations are pure functions of seed, step and index; readers and micro-batches change nothing."""

from __future__ import annotations

import itertools
import multiprocessing.spawn
import shutil
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from dagman.errors import RunError, StoreError
from dagman.settings.tree import ViewSettings
from dagman.store.format import locate_scan
from dagman.store.manifest import Store
from dagman.training.augmentation import augment_views, is_active
from dagman.training.draws import draw_drop_path, draw_masking, draw_noise, draw_uniform
from dagman.training.learner import Learner
from dagman.training.resources.loading import leave_main_alone, load_steps
from dagman.training.views import Crop, ViewDataset, choose_scan, draw_crops, find_usable, read_views, validation_places


@hypothesis.given(
    shape=st.tuples(*[st.integers(16, 90)] * 3), side=st.sampled_from([32, 64]), seed=st.integers(0, 5), box=st.floats(1.0, 2.0)
)
def test_two_views_overlap_and_stand_out_of_the_scan_only_where_it_is_smaller(shape, side, seed, box):
    view = ViewSettings(side=side, box=box)
    u, v = draw_crops("scan", shape, view, seed, 3, 1)
    for axis in range(3):
        starts = [u.start[axis], v.start[axis]]
        assert abs(starts[0] - starts[1]) <= round(box * side) - side
        for start in starts:
            if shape[axis] >= side:
                assert 0 <= start <= shape[axis] - side
            else:
                # Centred: the scan lies whole in the view.
                assert start == -((side - shape[axis]) // 2)
    assert draw_crops("scan", shape, view, seed, 3, 1) == (u, v)


def test_every_scan_has_its_turn_once_a_round_in_another_order():
    usable = [f"s{i}" for i in range(7)]
    rounds = [[choose_scan(usable, 0, 7 * r + i) for i in range(7)] for r in range(4)]
    assert all(sorted(one) == usable for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert [choose_scan(usable, 1, i) for i in range(7)] != rounds[0]


def test_scans_too_small_are_left_out_by_name_and_padding_decides():
    shapes = {"a": (64, 64, 64), "b": (40, 64, 33), "c": (64, 31, 64)}
    assert find_usable(shapes, ViewSettings(side=64)) == (["a", "b"], ["c"])
    assert find_usable(shapes, ViewSettings(side=64, padding=0)) == (["a"], ["b", "c"])
    assert find_usable(shapes, ViewSettings(side=64, padding=1)) == (["a", "b", "c"], [])


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (
            {"a": (80, 70, 20), "b": (90, 90, 40)},
            "no scan is large enough for a view of 128 voxels, which needs 64 along each axis; "
            "the largest is 90 x 90 x 40 voxels. Set view.side=64.",
        ),
        (
            {"a": (80, 70, 7)},
            "no scan is large enough for a view of 128 voxels, which needs 64 along each axis; "
            "the largest is 80 x 70 x 7 voxels. Prepare with a finer --spacing.",
        ),
        ({}, "the store holds no scans. Add some: dagman prepare SCANS --out STORE."),
    ],
)
def test_a_view_larger_than_every_scan_names_the_largest_and_what_fits(shapes, text):
    with pytest.raises(RunError) as caught:
        find_usable(shapes, ViewSettings(side=128))
    assert str(caught.value) == text


def test_a_step_is_its_own_whoever_reads_it_and_holds_the_stored_voxels(store, make_settings, make_dataset):
    settings = make_settings("train.batch=6", "seed=3")
    dataset = make_dataset(settings)
    item = dataset[4]
    assert item["u"].shape == item["v"].shape == (3, 1, 32, 32, 32)
    assert item["u"].dtype == torch.int16
    for row, (u, v) in enumerate(dataset.places(4)):
        assert u.scan == v.scan
        for crop, voxels in ((u, item["u"][row, 0]), (v, item["v"][row, 0])):
            expected = np.full((32, 32, 32), -1024, np.int16)
            whole = store.read(crop.scan).voxels
            for place in itertools.product((0, 7, 31), repeat=3):
                index = tuple(start + offset for start, offset in zip(crop.start, place, strict=True))
                if all(0 <= i < n for i, n in zip(index, whole.shape, strict=True)):
                    expected[place] = whole[index]
                assert voxels[place] == expected[place]
    again = list(load_steps(make_dataset(settings), 4, workers=0))
    assert len(again) == settings.train.steps - 4
    assert all(torch.equal(item[key], again[0][key]) for key in item)


def test_loader_processes_change_no_view_and_give_items_that_stay(make_settings, make_dataset):
    settings = make_settings("train.batch=6", "train.steps=14")
    own = range(1, 3)
    datasets = [make_dataset(settings) for _ in range(2)]
    for dataset in datasets:
        dataset.own = own
    alone, shared = (list(load_steps(dataset, 2, workers, {5})) for dataset, workers in zip(datasets, (0, 2), strict=True))
    assert len(alone) == len(shared) == 11
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert len(one["u"]) == len(own)


_READS = """
import multiprocessing, os, sys
from dagman.settings.tree import ViewSettings
from dagman.store.manifest import Store
from dagman.training.resources.loading import load_steps
from dagman.training.views import ViewDataset, find_usable

if __name__ == "__main__":
    store, view = Store(sys.argv[1]), ViewSettings(side=32, spacing=4)
    usable, _ = find_usable({row.id: row.shape for row in store.rows}, view)
    items = load_steps(ViewDataset(store, usable, view, 2, 0, 100), 0, workers=2)
    next(items)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_loader_processes_end_when_the_process_that_reads_from_them_is_killed(store, tmp_path):
    (tmp_path / "reads.py").write_text(_READS)
    # The loaders hold the other end of the pipe: it is read to its end only once they have ended.
    ended = subprocess.run([sys.executable, tmp_path / "reads.py", store.path], stdout=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == -9
    assert len(ended.stdout.split()) == 2


@pytest.mark.parametrize(
    "starts", [((0, 0, 0), (0, 0, 0)), ((-3, 2, 1), (5, 0, 2)), ((0, 0, 0), (8, 6, 4)), ((12, 0, 9), (-9, 20, -3))]
)
def test_a_pair_read_at_once_is_what_its_views_read_one_by_one_are(store, starts):
    row = next(row for row in store.rows if min(row.shape) > 30)
    whole, side = np.pad(store.read(row.id).voxels, 32, constant_values=-7), 32
    out = np.zeros((2, side, side, side), np.int16)
    read_views(store, (Crop(scan=row.id, start=starts[0]), Crop(scan=row.id, start=starts[1])), row.shape, -7, out)
    for view, start in zip(out, starts, strict=True):
        assert np.array_equal(view, whole[tuple(slice(first + 32, first + 32 + side) for first in start)])


def test_the_box_around_two_views_is_read_only_where_that_takes_fewer_blocks(store, monkeypatch):
    row = next(row for row in store.rows if min(row.shape) > 33)
    read: list[tuple[int, ...]] = []
    monkeypatch.setattr(store, "crop", lambda scan, start, size: read.append(tuple(size)) or np.zeros(size, np.int16))
    near, far = ((0, 0, 0), (2, 2, 2)), ((0, 0, 0), (64, 64, 64))
    for starts in (near, far):
        pair = (Crop(scan=row.id, start=starts[0]), Crop(scan=row.id, start=starts[1]))
        read_views(store, pair, (96, 96, 96), 0, np.zeros((2, 32, 32, 32), np.int16))
    assert read == [(34, 34, 34), (32, 32, 32), (32, 32, 32)]


def test_scans_smaller_than_a_view_are_surrounded_by_air(store, make_settings):
    settings = make_settings("view.padding=0.7")
    flat = min(store.rows, key=lambda row: min(row.shape))
    dataset = ViewDataset(store, [flat.id], settings.view, 2, 0, 1)
    (crop, _), view = dataset.places(0)[0], dataset[0]["u"][0, 0]
    assert crop.start[2] == -10
    assert flat.shape[2] == 12
    assert (view[:, :, :10] == -1024).all()
    assert (view[:, :, 22:] == -1024).all()
    assert (view[:, :, 10:22] != -1024).any()


def test_the_order_of_rows_changes_no_view(store, make_settings):
    settings = make_settings()
    shapes = {row.id: row.shape for row in store.rows}
    first, _ = find_usable(shapes, settings.view)
    second, _ = find_usable(dict(reversed(shapes.items())), settings.view)
    assert first == second


def test_validation_places_are_fixed_and_spread_over_the_scans(make_settings, make_dataset):
    dataset = make_dataset(make_settings())
    places = validation_places(dataset, 6)
    assert places == validation_places(make_dataset(make_settings("train.steps=40", "train.batch=8")), 6)
    assert len({u.scan for u, _ in places}) == 3


def test_a_damaged_scan_stops_the_run_with_one_line_that_names_its_file(store, make_settings, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    broken = Store(tmp_path / "store")
    usable, _ = find_usable({row.id: row.shape for row in broken.rows}, make_settings().view)
    for scan in usable:
        path = locate_scan(broken.path, scan)
        path.write_bytes(path.read_bytes()[:100])
    dataset = ViewDataset(broken, usable, make_settings().view, 2, 0, 2)
    with pytest.raises(StoreError, match="is damaged") as caught:
        next(load_steps(dataset, 0, workers=0))
    assert ".b2nd" in str(caught.value)
    # From a loader process too, where torch would give its traceback for the message.
    with pytest.raises(StoreError) as told:
        next(load_steps(dataset, 0, workers=1))
    assert str(told.value) == str(caught.value)


def test_draws_belong_to_a_view_not_to_its_place_in_a_batch():
    whole = draw_masking(0, 5, range(4), 8)
    assert whole.shape == (4, 8, 8)
    assert torch.equal(torch.cat([draw_masking(0, 5, [view], 8) for view in range(4)]), whole)
    assert torch.equal(draw_noise(0, 5, [3, 1], 8), draw_noise(0, 5, range(4), 8)[[3, 1]])
    drops = draw_drop_path(0, 5, range(4), 6)
    assert drops.shape == (6, 4)
    assert torch.equal(drops[:, 2:3], draw_drop_path(0, 5, [2], 6))
    others = [draw_masking(1, 5, range(4), 8), draw_masking(0, 6, range(4), 8), draw_uniform(0, "noise", 5, range(4), (8, 8))]
    assert not any(torch.equal(whole, other) for other in others)
    assert whole.min() >= 0
    assert whole.max() < 1


@pytest.mark.parametrize("micro", [2, 4])
def test_a_step_has_the_same_views_and_draws_however_it_is_cut(make_settings, make_dataset, micro):
    extra = ("train.batch=8", "view.flip=0.5", "view.noise=0.05")
    whole_settings, cut_settings = (make_settings(*extra, f"train.micro_batch={size}") for size in (8, micro))
    batch = make_dataset(whole_settings)[2]
    whole_learner, cut_learner = (Learner(one, device="cpu", precision="fp32") for one in (whole_settings, cut_settings))
    (whole,), cut = (learner.draw_pairs(batch, 2, range(4)) for learner in (whole_learner, cut_learner))
    assert [len(pair.views) for pair in cut] == [micro // 2] * (8 // micro)
    for name in ("views", "masking", "noise"):
        assert torch.equal(torch.cat([getattr(pair, name) for pair in cut]), getattr(whole, name))
    assert torch.equal(torch.cat([pair.drop_path for pair in cut], dim=1), whole.drop_path)


@pytest.mark.parametrize("switched_off", [{}, {"flip": 0.0, "noise": 0.0}])
def test_augmentations_that_are_off_change_no_bit(switched_off):
    views = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = ViewSettings(**switched_off)
    assert not is_active(settings)
    assert torch.equal(augment_views(views, settings, 0, 0, range(2)), views)


def test_augmentations_of_a_batch_are_those_of_its_views_and_stay_in_the_unit_range():
    settings = ViewSettings(flip=0.5, intensity_scale=0.2, intensity_shift=0.1, noise=0.1)
    views = torch.rand(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = augment_views(views, settings, 0, 3, range(4))
    assert is_active(settings)
    assert torch.equal(batch, torch.cat([augment_views(views[i : i + 1], settings, 0, 3, [i]) for i in range(4)]))
    assert not torch.equal(batch, augment_views(views, settings, 0, 4, range(4)))
    assert batch.min() >= 0
    assert batch.max() <= 1


def test_each_augmentation_does_what_its_setting_says():
    views = 0.3 + 0.4 * torch.rand(40, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    numbers = range(40)
    assert torch.equal(augment_views(views, ViewSettings(flip=1.0), 0, 0, numbers), views.flip(2, 3, 4))
    scales = (augment_views(views, ViewSettings(intensity_scale=0.2), 0, 0, numbers) / views).flatten(1)
    torch.testing.assert_close(scales.amax(dim=1), scales.amin(dim=1))
    assert 0.8 <= scales.min() < 0.9
    assert 1.1 < scales.max() <= 1.2
    shifts = (augment_views(views, ViewSettings(intensity_shift=0.1), 0, 0, numbers) - views).flatten(1).mean(dim=1)
    assert -0.1 <= shifts.min() < -0.05
    assert 0.05 < shifts.max() <= 0.1
    noise = augment_views(views, ViewSettings(noise=0.02), 0, 0, numbers) - views
    assert noise.mean().item() == pytest.approx(0, abs=1e-3)
    assert noise.std().item() == pytest.approx(0.02, rel=0.03)


def test_processes_that_read_views_do_not_run_the_program_again(monkeypatch):
    # A worker of xdist is started from no file.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    before = dict(vars(sys.modules["__main__"]))
    assert {"init_main_from_name", "init_main_from_path"} & multiprocessing.spawn.get_preparation_data("reader").keys()
    with leave_main_alone():
        assert not {"init_main_from_name", "init_main_from_path"} & multiprocessing.spawn.get_preparation_data("reader").keys()
    assert vars(sys.modules["__main__"]) == before
