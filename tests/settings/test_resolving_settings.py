"""`auto` becomes recipe R below 32 views per step and the paper's values from there on, each with its reason; idle keys are
named."""

from __future__ import annotations

import math

import pytest

from dagman.settings import load_settings, resolve_settings
from dagman.settings.resolution import list_idle_settings


def _resolve(*assignments: str, size: str = "small", method: str = "dagman"):
    settings, given = load_settings(size, method, assignments=assignments)
    resolved, lines = resolve_settings(settings)
    return resolved, lines, given


@pytest.mark.parametrize(("batch", "recipe"), [(2, "R"), (30, "R"), (32, "paper"), (64, "paper")])
def test_auto_switches_at_32_views_a_step_and_says_why(batch, recipe):
    settings, lines, _ = _resolve(f"train.batch={batch}")
    teacher, small = settings.teacher, recipe == "R"
    assert settings.train.recipe == recipe
    assert settings.projector.prototypes == {2: 1024, 30: 2624, 32: 2880, 64: 8192}[batch]
    assert (teacher.momentum, teacher.momentum_end) == pytest.approx((0.996, 1.0), abs=5e-5)
    assert teacher.centering == ("sinkhorn" if small else "mean")
    assert teacher.temperature == ("entropy" if small else "schedule")
    assert teacher.queue == (256 if small else 0)
    rates = {2: 3e-4, 30: 3e-4 * (8 / 3) ** (math.log(30 / 16) / math.log(4)), 32: 3e-4 * (8 / 3) ** 0.5, 64: 8e-4}
    assert settings.optim.lr == pytest.approx(rates[batch])
    assert lines[0].startswith(f"recipe {recipe}, ")
    assert f": {batch} views per step, {'fewer' if small else 'not fewer'} than 32" in lines[0]
    keys = [
        "projector.prototypes",
        *(f"teacher.{key}" for key in ("momentum", "momentum_end", "centering", "temperature", "queue")),
    ]
    assert [line.split(" = ")[0] for line in lines[1:8]] == [*keys, "optim.lr"]
    assert all(": " in line for line in lines)


def test_what_was_given_is_kept_and_not_reported():
    settings, lines, _ = _resolve("optim.lr=0.001", "teacher.queue=7", "train.recipe=paper", "projector.prototypes=64")
    assert (settings.optim.lr, settings.teacher.queue, settings.projector.prototypes) == (0.001, 7, 64)
    assert settings.teacher.centering == "mean"
    assert not [line for line in lines if line.startswith(("recipe", "optim.lr", "teacher.queue", "projector"))]


@pytest.mark.parametrize(("batch", "micro"), [(2, 2), (4, 4), (16, 16), (18, 10), (22, 12), (34, 12), (38, 14), (62, 16), (64, 16)])
def test_micro_batches_are_pairs_of_nearly_equal_parts_and_hold_at_most_sixteen_views(batch, micro):
    settings, lines, _ = _resolve(f"train.batch={batch}")
    assert settings.train.micro_batch == micro
    assert any(line.startswith("train.micro_batch") for line in lines) is (micro < batch)


@pytest.mark.parametrize(
    ("method", "assignments", "idle"),
    [
        ("dagman", ["masking.hint_pool=0.3", "teacher.noise=0.5", "teacher.granularity=patch"], []),
        ("dagman", ["losses.symmetric=false", "losses.aitd=0", "losses.gitd=0"], []),
        ("dagman-random-mask", ["masking.hint_pool=0.3"], ["masking.hint_pool"]),
        ("mst", ["masking.hint_pool=0.3", "masking.attention_from=noisy", "teacher.noise=0.7"], ["masking.hint_pool"]),
        ("smit", ["masking.attention_from=noisy"], ["masking.attention_from"]),
        ("smit", ["model.sa_stage=2", "model.sa_heads=4"], ["model.sa_stage", "model.sa_heads"]),
        ("dagman-clean-teacher", ["teacher.granularity=patch"], ["teacher.granularity"]),
        ("dagman-clean-teacher", ["masking.attention_from=noisy"], ["masking.attention_from"]),
        ("dagman", ["masking.hints=0", "masking.hint_pool=0.3"], ["masking.hint_pool"]),
        ("simmim", ["teacher.noise=0.7"], ["teacher.noise"]),
        ("simmim", ["teacher.momentum=0.9", "projector.hidden=9"], ["teacher.momentum", "projector.hidden"]),
        ("simmim", ["teacher.queue=9", "train.freeze_epochs=2"], ["teacher.queue", "train.freeze_epochs"]),
        ("simmim", ["teacher.target_entropy=0.4", "losses.student_temperature=0.2"], None),
        ("dagman", ["projector.layers=1", "projector.hidden=9"], ["projector.hidden"]),
        # Judged by what `auto` became.
        ("dagman", ["teacher.temperature_end=0.06"], ["teacher.temperature_end"]),
        ("dagman", ["teacher.target_entropy=0.4"], []),
        ("dagman", ["teacher.center_momentum=0.8"], ["teacher.center_momentum"]),
        ("dagman", ["train.recipe=paper", "teacher.target_entropy=0.4"], ["teacher.target_entropy"]),
        ("dagman", ["train.recipe=paper", "teacher.queue=64"], ["teacher.queue"]),
        ("dagman", ["train.recipe=paper", "teacher.center_momentum=0.8", "teacher.temperature_end=0.06"], []),
        # The noisy pass decides the masks, though nothing is distilled from it.
        ("dagman", ["losses.ampd=0", "losses.aitd=0", "losses.gitd=0", "masking.attention_from=noisy", "teacher.noise=0.5"], []),
        ("dagman", ["losses.ampd=0", "losses.aitd=0", "losses.gitd=0", "teacher.noise=0.5"], ["teacher.noise"]),
    ],
)
def test_a_key_without_effect_is_named_once_with_the_reason(method, assignments, idle):
    settings, _, given = _resolve(*assignments, method=method)
    warnings = list_idle_settings(settings, given)
    named = [warning.split(" has no effect: ")[0] for warning in warnings]
    assert len(named) == len(set(named))
    expected = [assignment.split("=")[0] for assignment in assignments] if idle is None else idle
    assert sorted(named) == sorted(expected)
    assert all(warning.endswith(".") for warning in warnings)


def test_keys_of_a_preset_are_no_news():
    settings, _, given = _resolve(method="simmim", size="tiny")
    assert list_idle_settings(settings, given) == []
