"""Every method preset is the one step, composed: its heads, its losses, its teacher; all its weights learn; AMIP can overfit.

Networks and methods are put together as a run does, from presets; views are drawn at random here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dagman.errors import SettingsError
from dagman.method import Targets, ViewPair
from dagman.method.masking import MASKINGS
from dagman.method.teacher import update_teacher
from dagman.settings import list_presets, load_settings, resolve_settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients

TINY = (
    "view.side=32",
    "model.embed=8",
    "model.depths=[1, 1, 1, 1]",
    "model.heads=[1, 2, 2, 4]",
    "model.sa_heads=2",
    "projector.hidden=16",
    "projector.bottleneck=8",
    "projector.prototypes=16",
)
# METHOD, Method presets: masking, teacher's noise, losses, semantic attention, teacher.
TABLE = {
    "dagman": ("attention-high", 0.7, {"amip", "ampd", "aitd", "gitd"}, True, True),
    "dagman-clean-teacher": ("attention-high", 0.0, {"amip", "ampd", "aitd", "gitd"}, True, True),
    "dagman-random-mask": ("random", 0.7, {"amip", "ampd", "aitd", "gitd"}, True, True),
    "smit": ("random", 0.0, {"amip", "ampd", "gitd"}, False, True),
    "attmask": ("attention-high", 0.0, {"ampd", "aitd"}, True, True),
    "mst": ("attention-low", 0.0, {"amip", "aitd"}, True, True),
    "ibot": ("block", 0.0, {"ampd", "gitd"}, False, True),
    "simmim": ("random", None, {"amip"}, False, False),
}


def _settle(method: str, *assignments: str):
    return resolve_settings(load_settings("tiny", method, assignments=[*TINY, *assignments])[0])[0]


def _draw_pair(student, seed: int, pairs: int = 2) -> ViewPair:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=random)

    return ViewPair(
        views=draw(pairs, 2, 1, 32, 32, 32),
        masking=draw(pairs, 2, 8, 8),
        noise=draw(pairs, 2, 8),
        drop_path=draw(student.encoder.branches, pairs, 2),
    )


def _make_targets(settings) -> Targets:
    return Targets(assembly.compose_rules(settings), int(settings.projector.prototypes), assembly.name_projectors(settings))


def test_the_presets_are_those_of_the_table():
    assert list_presets("methods") == sorted(TABLE)
    kinds = ("", "-resenc", "-resnet", "-vit")
    assert list_presets("sizes") == [f"{size}{kind}" for size in ("paper", "small", "tiny") for kind in kinds]


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_composed_as_the_table_says_and_takes_a_step(name):
    masking, noise, losses, attends, taught = TABLE[name]
    settings = _settle(name)
    student, teacher = assembly.build_networks(settings)
    method = assembly.compose_method(settings)
    assert method.masking is MASKINGS[masking]
    assert (teacher is not None) is taught
    assert (student.semantic_attention is not None) is attends
    assert (student.reconstruction is not None) is ("amip" in losses)
    assert set(student.projectors) == losses - {"amip"}
    if taught:
        assert method.noise == noise
        assert teacher.reconstruction is None
        assert set(teacher.projectors) == losses - {"amip"}
    # All presets hide as many units, so that they compare.
    assert method.shares.count(8).hidden == 5
    told = accumulate_gradients(student, teacher, [_draw_pair(student, 0)], method, _make_targets(settings), 0.04)
    assert set(told.parts) == losses
    assert torch.isfinite(told.total)
    assert told.total.item() == pytest.approx(sum(method.weights[key] * value.item() for key, value in told.parts.items()))


@pytest.mark.parametrize("name", TABLE)
def test_every_weight_gets_a_gradient_or_is_listed_with_the_reason(name):
    settings = _settle(name, "masking.mask_fill=token")
    student, teacher = assembly.build_networks(settings)
    method, targets = assembly.compose_method(settings), _make_targets(settings)
    reached = dict.fromkeys((key for key, _ in student.named_parameters()), False)
    for step in range(3):
        student.zero_grad()
        accumulate_gradients(student, teacher, [_draw_pair(student, step)], method, targets, 0.04)
        for key, parameter in student.named_parameters():
            reached[key] |= parameter.grad is not None and bool((parameter.grad != 0).any())
    untrained = assembly.list_untrained(settings)
    missed = {key for key, found in reached.items() if not found}
    assert missed == {key for key in reached if key.startswith(tuple(untrained))}
    assert untrained == ({"encoder.stages.3.": "no loss reads x4"} if name == "attmask" else {})


def test_semantic_attention_without_its_loss_is_listed_as_untrained():
    settings = _settle("dagman", "losses.aitd=0", "losses.gitd=0", "losses.amip=0")
    student, teacher = assembly.build_networks(settings)
    accumulate_gradients(
        student, teacher, [_draw_pair(student, 0)], assembly.compose_method(settings), _make_targets(settings), 0.04
    )
    missed = {key for key, parameter in student.named_parameters() if parameter.grad is None}
    assert missed == {key for key, _ in student.named_parameters() if key.startswith(tuple(assembly.list_untrained(settings)))}
    assert set(assembly.list_untrained(settings)) == {"encoder.stages.3.", "semantic_attention."}


def test_decay_spares_biases_norms_tokens_and_bias_tables():
    student, _ = assembly.build_networks(_settle("dagman", "masking.mask_fill=token"))
    decayed, spared = assembly.group_parameters(student, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): key for key, parameter in student.named_parameters()}
    plain = {names[id(parameter)] for parameter in spared["params"]}
    assert len(plain) + len(decayed["params"]) == len(names)
    for key, parameter in student.named_parameters():
        matrix = parameter.ndim > 1 and "bias" not in key
        assert (key in plain) is not matrix
    assert {"encoder.mask_token", "semantic_attention.cls"} <= plain


@pytest.mark.parametrize("name", ["dagman", "simmim"])
def test_bfloat16_leaves_weights_losses_and_centres_in_float32(name):
    settings = _settle(name)
    student, teacher = assembly.build_networks(settings)
    targets = _make_targets(settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = accumulate_gradients(student, teacher, [_draw_pair(student, 0)], assembly.compose_method(settings), targets, 0.04)
    assert {value.dtype for value in losses.parts.values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in student.parameters()} == {torch.float32}
    assert {value.dtype for value in targets.state()[0].values()} <= {torch.float32}
    assert torch.isfinite(losses.total)


def test_one_volume_is_overfitted():
    settings = _settle("dagman", "model.drop_path=0")
    student, teacher = assembly.build_networks(settings)
    method, targets = assembly.compose_method(settings), _make_targets(settings)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 3, indexing="ij")
    volume = (0.1 + 0.8 * (x.square() + y.square() + z.square() < 0.8) - 0.5 * ((x - 0.3).square() + z.square() < 0.1))[None, None]
    drawn = _draw_pair(student, 0, pairs=1)
    pair = replace(drawn, views=volume.expand(1, 2, -1, -1, -1, -1))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        errors.append(accumulate_gradients(student, teacher, [pair], method, targets, 0.04).parts["amip"].item())
        optimizer.step()
        if teacher is not None:
            update_teacher(teacher, student, 0.99)
    assert sum(errors[-5:]) / 5 < 0.4 * errors[0]


@pytest.mark.parametrize(
    ("name", "further"),
    [
        *((name, ()) for name in TABLE),
        ("dagman", ("teacher.granularity=patch",)),
        ("dagman", ("masking.attention_from=noisy", "masking.mask_fill=token", "losses.symmetric=false")),
        ("dagman", ("model.window=2", "train.recompute=4")),
    ],
)
def test_what_is_alike_in_hidden_windows_may_be_computed_once(name, further):
    told, gradients = [], []
    for skips in (False, True):
        settings = _settle(name, *further)
        student, teacher = assembly.build_networks(settings, skip_hidden=skips)
        assert all(network.encoder.skips_hidden is skips for network in (student, teacher) if network is not None)
        pair = _draw_pair(student, 0)
        if settings.teacher.granularity == "patch":
            pair = replace(pair, noise=torch.rand(2, 2, 8 * 512, generator=torch.Generator().manual_seed(1)))
        inside = torch.tensor([[[0, 0, 0], [32, 32, 32]]]).repeat(4, 1, 1).unflatten(0, (2, 2))
        inside[0, 1, 1, 2] = 16
        pair = replace(pair, inside=inside)
        parts = [pair.take(slice(0, 1)), pair.take(slice(1, 2))]
        losses = accumulate_gradients(student, teacher, parts, assembly.compose_method(settings), _make_targets(settings), 0.04)
        told.append({key: value.item() for key, value in losses.parts.items()})
        gradients.append({key: p.grad for key, p in student.named_parameters() if p.grad is not None})
    assert told[1] == pytest.approx(told[0], rel=1e-5)
    assert gradients[1].keys() == gradients[0].keys()
    largest = max(float(gradient.norm()) for gradient in gradients[0].values())
    for key, gradient in gradients[0].items():
        assert (gradients[1][key] - gradient).norm() < 1e-4 * gradient.norm() + 1e-6 * largest, key


@pytest.mark.parametrize(
    ("assignments", "device", "compiled", "value", "reason"),
    [
        ((), "cpu", "off", "skipped", "the same to rounding"),
        ((), "cuda:0", "off", "computed", "has not been measured on a GPU"),
        ((), "cpu", "on", "computed", "encoders are compiled"),
        (("model.window=6",), "cpu", "off", "computed", "windows of 6 patch tokens do not lie in units of 8"),
        (("model.backbone=vit", "model.heads=[2, 2, 2, 2]"), "cpu", "off", "computed", "each token of a vit sees all others"),
        (("model.backbone=resnet3d:18",), "cpu", "off", "computed", "resnet3d:18 has none"),
        (("train.skip_hidden=true",), "cuda:0", "off", "skipped", "requested"),
        (("train.skip_hidden=false",), "cpu", "off", "computed", "requested"),
    ],
)
def test_hidden_windows_are_skipped_where_that_was_measured_and_the_reason_is_stated(assignments, device, compiled, value, reason):
    choice = assembly.choose_skipping(_settle("dagman", *assignments), device, compiled)
    assert choice.value == value
    assert reason in choice.reason


def test_skipping_goes_with_compiled_encoders_but_not_with_cuda_graphs():
    settings = _settle("dagman", "train.skip_hidden=true")
    assert assembly.choose_skipping(settings, "cuda:0", "on").value == "skipped"
    with pytest.raises(SettingsError, match="a CUDA graph cannot vary the number of windows that are not hidden"):
        assembly.choose_skipping(settings, "cuda:0", "graphs")


def test_no_stage_is_computed_that_nothing_reads():
    for name, passes in (("attmask", (0, 0)), ("mst", (1, 0)), ("ibot", (1, 1))):
        student, teacher = assembly.build_networks(settings := _settle(name))
        passed: list[torch.nn.Module] = []
        last = [network.encoder.stages[3] for network in (student, teacher)]
        for stage in last:
            stage.register_forward_pre_hook(lambda module, inputs, passed=passed: passed.append(module))
        pair = _draw_pair(student, 0)
        accumulate_gradients(student, teacher, [pair], assembly.compose_method(settings), _make_targets(settings), 0.04)
        assert tuple(passed.count(stage) for stage in last) == passes, name
