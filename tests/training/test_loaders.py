"""How many processes read views follows from the cores that a process has, and a plan says when they are too few."""

from __future__ import annotations

import pytest

from dagman import devices
from dagman.training.plan.rehearsal import list_slow_reading
from dagman.training.resources.loading import MOST_AHEAD, MOST_AHEAD_BYTES, choose_ahead
from dagman.training.resources.machine import LOADERS, choose_loaders


@pytest.mark.parametrize(
    ("cores", "ranks", "count"), [(32, 1, 4), (32, 8, 3), (16, 8, 1), (4, 1, 3), (2, 1, 1), (1, 1, 1), (8, 64, 1)]
)
def test_loaders_leave_each_rank_a_core_for_its_steps(cores, ranks, count, monkeypatch):
    monkeypatch.setattr(devices, "_count_cores", lambda: (cores, "the cores of this process"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    chosen = choose_loaders("auto", "cuda:0")
    assert chosen.value == count <= LOADERS
    assert ("steps may wait for data" in chosen.reason) is (count == 1)


def test_loaders_are_those_asked_for_and_none_on_a_cpu():
    assert choose_loaders(7, "cpu").value == 7
    assert choose_loaders(0, "cuda:0") == devices.Choice("loaders", 0, "requested")
    assert choose_loaders("auto", "cpu").value == 0


def test_a_plan_says_how_many_loaders_would_keep_up():
    assert list(list_slow_reading(0.05, 65.0, 400.0, 1)) == []
    # Without the 20 % of waiting, 80 views per second: two loaders of 80 have one to spare for each.
    (text,) = list_slow_reading(0.2, 64.0, 80.0, 1)
    assert text == (
        "reading: 20% of the time is spent waiting for data (without it, steps would take 80 views/s, and one process reads 80). "
        "Set train.workers=2."
    )
    (text,) = list_slow_reading(0.2, 64.0, 80.0, 4)
    assert text.endswith("Put the store on a faster disk, or request more cores.")
    assert len(list(list_slow_reading(1.0, 1.0, 80.0, 0))) == 1


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("batch", ["4", "64", "1024"])
def test_what_is_read_ahead_has_a_bound(make_settings, make_dataset, workers, batch):
    dataset = make_dataset(make_settings(f"train.batch={batch}"))
    ahead = choose_ahead(dataset, workers)
    size = dataset.allocate(len(dataset.own)).nbytes
    assert 1 <= ahead <= MOST_AHEAD
    assert ahead == 1 or ahead * workers * size <= MOST_AHEAD_BYTES
