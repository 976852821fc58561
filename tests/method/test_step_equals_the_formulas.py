"""The training step, laid beside METHOD.md: masks, targets, losses and gradients equal a plain computation, view by view.

The plain computation asks the same networks for their outputs one view at a time, and does everything else in float64:
ranking, hints, noise, centring or Sinkhorn, crossed rows, cross entropies, means. P = 2 pairs of views of 32 voxels, N = 8 units.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax

from dagman.method import Method, Network, Targets, ViewPair, copy_student
from dagman.method.masking import MASKINGS, MaskingShares
from dagman.method.networks import ProjectorShape, SemanticShape
from dagman.method.targets import TargetRules
from dagman.model import SwinShape
from dagman.training.accumulation import accumulate_gradients

SIDE, UNITS, PROTOTYPES = 32, 8, 12
WEIGHTS = {"amip": 1.0, "ampd": 0.1, "aitd": 0.2, "gitd": 0.3}
TAU_S, TAU_T = 0.1, 0.2


def _build_networks(names=("ampd", "aitd", "gitd"), *, reconstruct=True, layers=3, mask_fill="zero") -> tuple[Network, Network]:
    """A student and a teacher that has drifted from it."""
    shape = SwinShape(embed=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4))
    projectors = ProjectorShape(names=names, layers=layers, hidden=16, bottleneck=8, prototypes=PROTOTYPES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Network(shape, SemanticShape(heads=2), projectors, reconstruct=reconstruct, mask_fill=mask_fill)
        teacher = copy_student(student)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return student.train(), teacher


def _compose(**changes) -> Method:
    """DAGMaN with hints, so that every part is at work."""
    values = {
        "masking": MASKINGS["attention-high"],
        "shares": MaskingShares(ratio=0.7, hints=0.25, hint_pool=0.5),
        "needs_attention": True,
        "attention_from": "clean",
        "noise": 0.7,
        "granularity": "unit",
        "weights": WEIGHTS,
        "student_temperature": TAU_S,
        "symmetric": True,
    }
    return Method(**(values | changes))


def _draw_pair(pairs: int, seed: int = 0) -> ViewPair:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=random)

    coarse = draw(pairs, 2, 1, 4, 4, 4).repeat_interleave(8, 3).repeat_interleave(8, 4).repeat_interleave(8, 5)
    views = 0.8 * coarse + 0.2 * draw(pairs, 2, 1, SIDE, SIDE, SIDE)
    return ViewPair(views=views, masking=draw(pairs, 2, UNITS, 8), noise=draw(pairs, 2, UNITS), drop_path=draw(8, pairs, 2))


def _cut(pair: ViewPair, pairs: int) -> list[ViewPair]:
    """The same pairs in micro-batches of `pairs`; the last may be smaller."""
    parts = [slice(first, first + pairs) for first in range(0, len(pair.views), pairs)]
    return [
        ViewPair(views=pair.views[p], masking=pair.masking[p], noise=pair.noise[p], drop_path=pair.drop_path[:, p]) for p in parts
    ]


def _spread(units: np.ndarray, factor: int) -> torch.Tensor:
    """Units of one view on a finer grid."""
    return torch.from_numpy(np.kron(units.reshape(2, 2, 2), np.ones((factor,) * 3)).astype(bool))[None]


def _choose_hidden(attention: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """METHOD, Masking: the first floor(rN) by attention, less floor(sN) drawn among the first floor(hint_pool N)."""
    ranked = sorted(range(UNITS), key=lambda unit: -attention[unit])
    hidden = set(ranked[: math.floor(0.7 * UNITS)])
    pool = ranked[: math.floor(0.5 * UNITS)]
    hidden -= set(sorted(pool, key=lambda unit: draws[unit, 1])[: math.floor(0.25 * UNITS)])
    return np.array([unit in hidden for unit in range(UNITS)])


def _choose_dropped(draws: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(draws)) < math.floor(0.7 * UNITS)


def _aim(logits: np.ndarray, centering: str) -> np.ndarray:
    """P_t of all rows of a step, before any step: the centre is 0."""
    logits = logits.astype(np.float64)
    if centering == "mean":
        return softmax(logits / TAU_T, axis=1)
    scores = logits / TAU_T
    for _ in range(3):
        scores = scores - logsumexp(scores, axis=0, keepdims=True)
        scores = scores - logsumexp(scores, axis=1, keepdims=True)
    return np.exp(scores)


def _compute_losses(student, teacher, pair: ViewPair, centering: str, *, symmetric: bool) -> tuple[dict[str, float], torch.Tensor]:
    """The losses in float64, and the total as a tensor whose gradient is that of the plain computation."""
    views, draws, noise, drop = (
        pair.views.flatten(0, 1),
        pair.masking.flatten(0, 1),
        pair.noise.flatten(0, 1),
        pair.drop_path.flatten(1),
    )
    hidden, taught = [], []
    for row, view in enumerate(views):
        with torch.no_grad():
            hidden.append(_choose_hidden(teacher.attend(view[None])[0].numpy(), draws[row].numpy()))
            dropped = _spread(_choose_dropped(noise[row].numpy()), 8)
            taught.append(teacher(view[None], dropped, torch.from_numpy(hidden[row])[None]).projections)
    seen = range(0, len(views), 1 if symmetric else 2)
    answers = {
        row: student(views[row][None], _spread(hidden[row], 8), torch.from_numpy(hidden[row])[None], drop[:, row : row + 1])
        for row in seen
    }
    patches = _aim(torch.cat([taught[row]["ampd"] for row in seen]).numpy(), centering).reshape(len(seen), -1, PROTOTYPES)
    aims = {name: _aim(torch.cat([p[name] for p in taught]).numpy(), centering) for name in ("aitd", "gitd")}
    losses = dict.fromkeys(WEIGHTS, 0.0)
    total = torch.zeros((), dtype=torch.float64)
    for number, row in enumerate(seen):
        other, answer = row ^ 1, answers[row]
        voxels = _spread(hidden[row], 16)[0]
        error = (answer.reconstruction[0, 0].double() - views[row][0].double()).abs()[voxels].mean()
        crossed = {"ampd": patches[number], "aitd": aims["aitd"][other][None], "gitd": aims["gitd"][other][None]}
        losses["amip"] += error.item() / len(seen)
        total = total + WEIGHTS["amip"] * error / len(seen)
        for name, target in crossed.items():
            logits = answer.projections[name]
            plain = -(target * log_softmax(logits.detach().double().numpy() / TAU_S, axis=1)).sum(axis=1).mean()
            losses[name] += plain / len(seen)
            again = -(torch.from_numpy(target) * (logits.double() / TAU_S).log_softmax(dim=1)).sum(dim=1).mean()
            total = total + WEIGHTS[name] * again / len(seen)
    return losses, total


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_losses_and_gradients_equal_a_plain_computation_view_by_view(centering, symmetric):
    student, teacher = _build_networks()
    pair = _draw_pair(2)
    other = copy.deepcopy(student)
    targets = Targets(TargetRules(centering=centering), PROTOTYPES)
    losses = accumulate_gradients(student, teacher, [pair], _compose(symmetric=symmetric), targets, TAU_T)

    expected, total = _compute_losses(other, teacher, pair, centering, symmetric=symmetric)
    assert {name: value.item() for name, value in losses.parts.items()} == pytest.approx(expected, rel=2e-5)
    assert losses.total.item() == pytest.approx(sum(WEIGHTS[name] * value for name, value in expected.items()), rel=2e-5)
    assert losses.temperatures == {"ampd": TAU_T, "aitd": TAU_T, "gitd": TAU_T}
    total.backward()
    for (name, ours), theirs in zip(student.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_centres_move_to_the_mean_logit_of_the_whole_step_and_sharpen_the_next():
    student, teacher = _build_networks()
    targets = Targets(TargetRules(centering="mean", center_momentum=0.9), PROTOTYPES)
    pair = _draw_pair(2)
    accumulate_gradients(student, teacher, _cut(pair, 1), _compose(), targets, TAU_T)
    with torch.no_grad():
        logits = []
        for view, noise in zip(pair.views.flatten(0, 1), pair.noise.flatten(0, 1), strict=True):
            logits.append(teacher(view[None], _spread(_choose_dropped(noise.numpy()), 8)).projections["gitd"])
    torch.testing.assert_close(targets.centers["gitd"], 0.1 * torch.cat(logits).mean(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rules", [TargetRules(), TargetRules(centering="sinkhorn", target_entropy=0.5, queue=10)])
@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_a_step_in_micro_batches_is_the_step_in_one_piece(rules, pairs):
    outcomes = []
    for cut in (4, pairs):
        student, teacher = _build_networks()
        targets = Targets(rules, PROTOTYPES)
        for seed in range(2):
            student.zero_grad()
            losses = accumulate_gradients(student, teacher, _cut(_draw_pair(4, seed), cut), _compose(), targets, TAU_T)
        gradient = torch.cat([p.grad.flatten() for p in student.parameters()])
        outcomes.append((losses, gradient, targets.state()))
    (whole, gradient, (tensors, temperatures)), (parts, summed, (their_tensors, their_temperatures)) = outcomes
    assert parts.total.item() == pytest.approx(whole.total.item(), rel=1e-5)
    assert {k: v.item() for k, v in parts.parts.items()} == pytest.approx({k: v.item() for k, v in whole.parts.items()}, rel=1e-5)
    assert (summed - gradient).norm() < 1e-5 * gradient.norm()
    assert their_tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(their_tensors[name], value, rtol=1e-5, atol=1e-5)
    assert {k: v or 0 for k, v in their_temperatures.items()} == pytest.approx(
        {k: v or 0 for k, v in temperatures.items()}, abs=1e-4
    )


def _record_input(student, teacher, method) -> tuple[torch.Tensor, ...]:
    """What the student is given in a step: views, blanked patch tokens, units, draws of stochastic depth."""
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    accumulate_gradients(student, teacher, [_draw_pair(2)], method, Targets(TargetRules(), PROTOTYPES), TAU_T)
    handle.remove()
    (inputs,) = seen
    return inputs


@pytest.mark.parametrize("granularity", ["unit", "patch"])
def test_the_teachers_noise_never_reaches_the_student(granularity):
    student, teacher = _build_networks()
    clean = _record_input(student, teacher, _compose(noise=0.0))
    pair = _draw_pair(2)
    if granularity == "patch":
        pair = dataclasses.replace(pair, noise=torch.rand(2, 2, UNITS * 512))
    seen: list[tuple[torch.Tensor, ...]] = []
    dimmed: list[tuple[torch.Tensor, ...]] = []
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: dimmed.append(inputs))
    method = _compose(noise=0.7, granularity=granularity)
    accumulate_gradients(student, teacher, [pair], method, Targets(TargetRules(), PROTOTYPES), TAU_T)
    assert all(torch.equal(a, b) for a, b in zip(clean, seen[0], strict=True))
    (_, dropped), (_, clean_input) = dimmed
    assert clean_input is None
    tokens = UNITS * 512
    share = math.floor(0.7 * UNITS) / UNITS if granularity == "unit" else math.floor(0.7 * tokens) / tokens
    assert dropped.flatten(1).double().mean(dim=1).tolist() == [share] * 4


def test_masks_come_from_the_clean_view_unless_the_noisy_pass_is_asked_for():
    student, teacher = _build_networks()
    pair = _draw_pair(2)
    dropped = torch.cat([_spread(_choose_dropped(draws.numpy()), 8) for draws in pair.noise.flatten(0, 1)])
    views = pair.views.flatten(0, 1)
    for source, noise in (("clean", None), ("noisy", dropped)):
        with torch.no_grad():
            attention = teacher.attend(views, noise)
        expected = [_choose_hidden(a.numpy(), d.numpy()) for a, d in zip(attention, pair.masking.flatten(0, 1), strict=True)]
        _, blanked, units, _ = _record_input(student, teacher, _compose(attention_from=source))
        assert units.tolist() == np.stack(expected).tolist()
        assert torch.equal(blanked, torch.cat([_spread(hidden, 8) for hidden in expected]))


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 2),
        ({"attention_from": "noisy"}, 1),
        ({"noise": 0.0}, 1),
        ({"masking": MASKINGS["random"], "needs_attention": False}, 1),
    ],
)
def test_where_attention_and_targets_read_one_input_the_teacher_passes_once(changes, passes):
    student, teacher = _build_networks()
    seen = []
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    accumulate_gradients(student, teacher, [_draw_pair(2)], _compose(**changes), Targets(TargetRules(), PROTOTYPES), TAU_T)
    assert len(seen) == passes


def test_what_noise_drops_is_zero_though_masked_tokens_hold_a_learned_one():
    student, _ = _build_networks(mask_fill="token")
    with torch.no_grad():
        student.encoder.mask_token.copy_(torch.linspace(-5, 5, 8))
        teacher, view = copy_student(student), torch.rand(1, 1, SIDE, SIDE, SIDE)
        dropped = _spread(np.arange(UNITS) < 5, 8)
        learned, noisy = (network(view, dropped).projections["gitd"] for network in (student, teacher))
        student.encoder.mask_token.zero_()
        torch.testing.assert_close(noisy, student(view, dropped).projections["gitd"])
    assert not torch.allclose(learned, noisy)
    # The token moves with the student's all the same: it is part of the encoder that is kept.
    assert "encoder.mask_token" in teacher.state_dict()


def test_gradients_of_float32_islands_are_not_rounded_under_autocast():
    student, teacher = _build_networks(layers=1)
    with torch.autocast("cpu", torch.bfloat16):
        accumulate_gradients(student, teacher, [_draw_pair(2)], _compose(), Targets(TargetRules(), PROTOTYPES), TAU_T)
    for projector in student.projectors.values():
        gradient = projector.last.weight.grad
        assert not torch.equal(gradient, gradient.bfloat16().float())


def test_no_gradient_reaches_the_teacher_and_no_step_changes_it():
    student, teacher = _build_networks()
    before = copy.deepcopy(teacher.state_dict())
    accumulate_gradients(
        student, teacher.requires_grad_(True), [_draw_pair(2)], _compose(), Targets(TargetRules(), PROTOTYPES), TAU_T
    )
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_teacher_starts_as_the_students_copy_without_its_reconstruction_head():
    student, _ = _build_networks()
    teacher = copy_student(student)
    kept = {name: value for name, value in student.state_dict().items() if not name.startswith("reconstruction.")}
    assert len(kept) < len(student.state_dict())
    assert teacher.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}


@pytest.mark.parametrize("left_out", ["amip", "ampd", "aitd", "gitd"])
def test_a_loss_without_weight_is_not_computed_and_the_others_stay(left_out):
    weights = WEIGHTS | {left_out: 0.0}
    names = tuple(name for name in ("ampd", "aitd", "gitd") if weights[name])
    student, teacher = _build_networks()
    reference = accumulate_gradients(student, teacher, [_draw_pair(2)], _compose(), Targets(TargetRules(), PROTOTYPES), TAU_T)
    student.zero_grad()
    for network in (student, teacher):
        if left_out in network.projectors:
            del network.projectors[left_out]
    if left_out == "amip":
        student.reconstruction = None
    targets = Targets(TargetRules(), PROTOTYPES, names)
    losses = accumulate_gradients(student, teacher, [_draw_pair(2)], _compose(weights=weights), targets, TAU_T)
    assert set(losses.parts) == set(WEIGHTS) - {left_out}
    assert set(losses.temperatures) == set(names)
    for name, value in losses.parts.items():
        torch.testing.assert_close(value, reference.parts[name])
    expected = sum(weights[name] * value.item() for name, value in losses.parts.items())
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
