"""Proves that losses, gradients and targets of a step need no value that the host would have to read from a device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dagman.method import Targets, ViewPair
from dagman.method.centering import solve_temperature, solve_temperature_on_device
from dagman.method.masking import count_masked, locate_units
from dagman.method.teacher import update_teacher
from dagman.settings import load_settings, resolve_settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients
from dagman.training.learner import Learner
from dagman.training.recovery.outcome import Gate

TINY = ("view.side=32", "model.embed=4", "model.depths=[1, 1, 1, 1]", "model.heads=[1, 1, 1, 1]", "model.sa_heads=2")
HEADS = ("projector.hidden=8", "projector.bottleneck=8", "projector.prototypes=16")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class _Reads(TorchDispatchMode):
    """Counts the operations whose outcome, on a device, the host waits for: a number, or how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            one is not None and one.dtype is torch.bool for one in args[1]
        )
        if name in READS or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def _prepare(method: str):
    settings = resolve_settings(load_settings("tiny", method, assignments=[*TINY, *HEADS, "train.recipe=R"])[0])[0]
    student, teacher = assembly.build_networks(settings)
    random = torch.Generator().manual_seed(0)
    # One view of the first pair stands out of its scan.
    inside = torch.tensor([[[0, 0, 0], [32, 32, 32]]]).repeat(4, 1, 1).unflatten(0, (2, 2))
    inside[0, 1] = torch.tensor([[0, 16, 0], [32, 32, 20]])
    pair = ViewPair(
        views=torch.rand(2, 2, 1, 32, 32, 32, generator=random),
        masking=torch.rand(2, 2, 8, 8, generator=random),
        noise=torch.rand(2, 2, 8, generator=random),
        drop_path=torch.rand(student.encoder.branches, 2, 2, generator=random),
        inside=inside,
    )
    return settings, student, teacher, pair


@pytest.mark.parametrize("name", ["dagman", "smit", "mst"])
def test_a_step_reads_nothing_back_and_gives_the_losses_of_one_that_does(name):
    settings, student, teacher, pair = _prepare(name)
    method, rules = assembly.compose_method(settings), assembly.compose_rules(settings)
    assert rules.target_entropy is not None
    found = {}
    for on_device in (True, False):
        targets = Targets(rules, 16, assembly.name_projectors(settings), on_device=on_device)
        student.zero_grad()
        with _Reads() as reads:
            losses = accumulate_gradients(student, teacher, [pair.take(slice(0, 1)), pair.take(slice(1, 2))], method, targets, 0.04)
        found[on_device] = losses
        assert bool(reads.found) is not on_device, reads.found
        gradients = {key: p.grad for key, p in student.named_parameters() if p.grad is not None}
        found[f"gradients {on_device}"] = gradients
    for key, value in found[False].parts.items():
        torch.testing.assert_close(found[True].parts[key], value, rtol=1e-6, atol=0)
    for key, value in found["gradients False"].items():
        torch.testing.assert_close(found["gradients True"][key], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("target", [0.2, 0.9])
def test_a_temperature_solved_on_the_device_is_the_hosts(target):
    logits = torch.randn(50, 256, generator=torch.Generator().manual_seed(1)) * 3
    assert solve_temperature_on_device(logits, target).item() == pytest.approx(solve_temperature(logits, target), rel=1e-12)


def test_a_state_of_either_kind_goes_on_as_the_other():
    settings, *_ = _prepare("dagman")
    rules, logits = assembly.compose_rules(settings), torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    told = {}
    for first in (True, False):
        one, other = Targets(rules, 16, on_device=first), Targets(rules, 16, on_device=not first)
        for name in ("ampd", "gitd"):
            one.update(name, logits, 0.04)
        other.restore(*one.state())
        told[first] = [float(other.update(name, 2 * logits, 0.04)[1]) for name in ("ampd", "gitd")]
        assert other.temperature("ampd", logits, 0.04) == pytest.approx(told[first][0], rel=1e-12)
    assert told[True] == pytest.approx(told[False], rel=1e-12)
    assert all(math.isfinite(value) for value in told[True])


def test_the_number_of_masked_units_is_known_before_they_are_chosen():
    settings, *_, pair = _prepare("dagman")
    shares = assembly.describe_masking(settings)
    boxes = torch.tensor([[[0, 0, 0], [4, 4, 4]], [[0, 1, 0], [4, 4, 3]]])
    assert count_masked(shares, (4, 4, 4), 2, boxes) == [shares.count(64).hidden, shares.count(36).hidden]
    units = pair.masking[0, :, :, 0] > 0.5
    assert torch.equal(locate_units(units, int(units.sum())), locate_units(units))
    assert torch.equal(locate_units(units), units.flatten().nonzero()[:, 0])


def test_a_masking_that_hides_another_number_is_named():
    settings, _, teacher, pair = _prepare("dagman")
    method = replace(assembly.compose_method(settings), masking=lambda attention, grid, counts, draws: draws[..., 0] > 2)
    with pytest.raises(ValueError, match=r"the masking hid \[0, 0, 0, 0\] units of the views where \["):
        accumulate_gradients(teacher, teacher, [pair], method, Targets(assembly.compose_rules(settings), 16), 0.04)


def test_a_whole_step_reads_nothing_where_it_is_read_later(store, tiny, make_settings, make_dataset):
    settings = make_settings("masking.kind=random", "masking.hints=0")
    found = {}
    for after in (0, 1):
        learner = Learner(settings, device="cpu", precision="fp32", read_after=after)
        dataset = make_dataset(settings)
        batches = [dataset[step] for step in range(2)]
        outcomes = []
        with _Reads() as reads:
            for step, batch in enumerate(batches):
                outcomes.append(learner.advance(learner.draw_pairs(batch, step, dataset.own), step))
        assert bool(reads.found) is (after == 0), reads.found
        found[after] = [learner.read(outcome) for outcome in outcomes]
    assert [list(row) for row in found[1]] == [list(row) for row in found[0]]
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_shut_gate_leaves_the_teacher_as_it_is_and_an_open_one_moves_it_as_ever():
    torch.manual_seed(0)
    teachers, student = [torch.nn.Linear(3, 2) for _ in range(2)], torch.nn.Linear(3, 2)
    teachers[1].load_state_dict(teachers[0].state_dict())
    before = teachers[0].weight.clone()
    gate = Gate(torch.device("cpu"))
    update_teacher(teachers[0], student, 0.9)
    gate.see(torch.tensor(1.0), torch.tensor(torch.nan))
    gate.see(torch.tensor(1.0))
    update_teacher(teachers[1], student, 0.9, gate.shut)
    assert torch.equal(teachers[1].weight, before)
    gate.open()
    gate.see(torch.tensor(1.0), torch.tensor(2.0))
    update_teacher(teachers[1], student, 0.9, gate.shut)
    torch.testing.assert_close(teachers[1].weight, teachers[0].weight)
