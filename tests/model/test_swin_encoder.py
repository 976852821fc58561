"""Proves the encoder's contract: shapes, masking, stochastic depth by given draws, precision, gradients, no draw of its own."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from dagman.errors import SettingsError
from dagman.model import SwinEncoder, SwinShape, normalise_features
from dagman.model.swin import SwinBlock, scale_branches

SHAPE = SwinShape(embed=12, depths=(2, 2, 2, 2), heads=(2, 2, 4, 4))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(0)
    return SwinEncoder(SHAPE)


@pytest.fixture(scope="module")
def view() -> torch.Tensor:
    return torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sides", [(64, 32, 32), (32, 40, 33), (16, 16, 16), (2, 5, 30)])
def test_feature_maps_have_the_shapes_of_the_method(encoder: SwinEncoder, sides: tuple[int, int, int]):
    with torch.no_grad():
        features = encoder(torch.rand(1, 1, *sides))
    for x, width, stride in zip(features, SHAPE.widths, SHAPE.strides, strict=True):
        assert x.shape == (1, width, *(-(-side // stride) for side in sides))


def test_the_papers_shape_is_the_default():
    shape = SwinShape()
    assert (shape.widths, shape.strides, shape.branches) == ((96, 192, 384, 768), (4, 8, 16, 32), 28)


def test_no_view_at_all_gives_no_features(encoder: SwinEncoder):
    assert [x.shape[0] for x in encoder(torch.rand(0, 1, 32, 32, 32))] == [0] * 4


def test_stopping_after_a_stage_gives_the_same_maps(encoder: SwinEncoder, view: torch.Tensor):
    with torch.no_grad():
        for got, wanted in zip(encoder(view, stages=3), encoder(view)[:3], strict=True):
            assert torch.equal(got, wanted)


def test_a_batch_equals_view_by_view(encoder: SwinEncoder, view: torch.Tensor):
    with torch.no_grad():
        alone = [torch.cat(maps) for maps in zip(encoder(view[:1]), encoder(view[1:]), strict=True)]
        for together, one_by_one in zip(encoder(view), alone, strict=True):
            assert torch.allclose(together, one_by_one, atol=1e-5)


@pytest.mark.parametrize("fill", ["zero", "token"])
def test_voxels_under_masked_tokens_change_nothing(view: torch.Tensor, fill: str):
    encoder = SwinEncoder(SHAPE, mask_fill=fill)
    hidden = torch.rand(2, 16, 16, 16, generator=torch.Generator().manual_seed(2)) < 0.7
    voxels = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, None]
    with torch.no_grad():
        masked, other, clean = encoder(view, hidden), encoder(torch.where(voxels, 1 - view, view), hidden), encoder(view)
    for a, b, c in zip(masked, other, clean, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)


def test_masking_nothing_changes_nothing(encoder: SwinEncoder, view: torch.Tensor):
    with torch.no_grad():
        for a, b in zip(encoder(view, torch.zeros(2, 16, 16, 16, dtype=torch.bool)), encoder(view), strict=True):
            assert torch.equal(a, b)


def test_the_learned_mask_token_stands_in_masked_places_and_learns(view: torch.Tensor):
    encoder = SwinEncoder(SHAPE, mask_fill="token")
    hidden = torch.ones(2, 16, 16, 16, dtype=torch.bool)
    before = encoder(view, hidden)[0]
    before.square().sum().backward()
    assert encoder.mask_token.grad.abs().sum() > 0
    with torch.no_grad():
        encoder.mask_token += torch.randn(12)
        assert not torch.allclose(encoder(view, hidden)[0], before)


def test_a_mask_on_another_grid_is_refused(encoder: SwinEncoder, view: torch.Tensor):
    with pytest.raises(ValueError, match=r"grid \(8, 8, 8\), the view has \(16, 16, 16\)"):
        encoder(view, torch.zeros(2, 8, 8, 8, dtype=torch.bool))


def test_input_is_standardised_inside(view: torch.Tensor):
    torch.manual_seed(3)
    inside = SwinEncoder(SHAPE)
    outside = SwinEncoder(SwinShape(embed=12, depths=SHAPE.depths, heads=SHAPE.heads, mean=0.0, std=1.0))
    outside.load_state_dict(inside.state_dict() | {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)})
    with torch.no_grad():
        for a, b in zip(inside(view), outside((view - 0.45) / 0.35), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_branch_factors_have_mean_one_and_rates_rise_linearly():
    draws = ((torch.arange(10_000) + 0.5) / 10_000).expand(8, -1)
    factors = scale_branches(draws, 0.3)
    assert torch.allclose(factors.mean(1), torch.ones(8), atol=1e-4)
    dropped = (factors == 0).float().mean(1)
    assert torch.allclose(dropped, torch.tensor([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3]), atol=1e-4)


def test_a_block_whose_branches_are_dropped_hands_on_its_input():
    block = SwinBlock(8, 2, 4, 4.0, shift=2)
    x = torch.randn(2, 125, 8)
    factors = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[:, :, None, None]
    with torch.no_grad():
        got = block(x, (5, 5, 5), iter(factors))
        assert torch.equal(got[0], x[0])
        assert torch.equal(got[1], block(x, (5, 5, 5), None)[1])


def test_stochastic_depth_follows_the_draws_and_is_off_without(encoder: SwinEncoder, view: torch.Tensor):
    still = SwinEncoder(SwinShape(embed=12, depths=SHAPE.depths, heads=SHAPE.heads, drop_path=0.0))
    still.load_state_dict(encoder.state_dict())
    draws = torch.rand(SHAPE.branches, 2, generator=torch.Generator().manual_seed(4))
    draws[:, 0] = 0  # the first view loses every branch that can be lost
    with torch.no_grad():
        plain = encoder.train()(view)
        assert all(torch.equal(a, b) for a, b in zip(plain, still(view, drop=draws), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(encoder(view, drop=draws), encoder(view, drop=draws), strict=True))
        assert not torch.allclose(encoder(view, drop=draws)[3][0], plain[3][0])
    with pytest.raises(ValueError, match="drop has 3 rows, the encoder has 16"):
        encoder(view, drop=torch.rand(3, 2))


def test_nothing_is_drawn_from_the_global_generator(encoder: SwinEncoder, view: torch.Tensor):
    before = torch.get_rng_state()
    encoder.train()(view, drop=torch.full((SHAPE.branches, 2), 0.05))
    encoder.attention_of(view)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gradient_reaches_every_parameter():
    encoder = SwinEncoder(SHAPE)
    view = torch.rand(1, 1, 64, 64, 64)
    sum(x.square().mean() for x in normalise_features(encoder(view)[-1:]) + encoder(view)).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_autocast_stays_close_to_float32(view: torch.Tensor, device: str):
    encoder, view = SwinEncoder(SHAPE).to(device), view.to(device)
    with torch.no_grad():
        fine = encoder(view)
        with torch.autocast(device, torch.bfloat16):
            coarse = encoder(view)
    for a, b in zip(coarse, fine, strict=True):
        assert (a.float() - b).norm() / b.norm() < 0.02


def test_attention_of_a_stage_is_that_of_its_last_block(encoder: SwinEncoder, view: torch.Tensor):
    seen = []
    last = encoder.stages[1].blocks[-1].attention
    handle = last.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    values = []
    other = last.qkv.register_forward_hook(lambda _, __, output: values.append(output))
    with torch.no_grad():
        encoder(view)
    handle.remove()
    other.remove()
    attention = encoder.attention_of(view)[1]
    v = values[0].unflatten(-1, (3, 2, -1))[:, :, 2].transpose(1, 2)
    assert torch.allclose((attention.probabilities @ v).transpose(1, 2).flatten(2), seen[0], atol=1e-6)


def test_attention_maps_name_places_in_voxels_and_mark_padding(encoder: SwinEncoder):
    attentions = encoder.attention_of(torch.rand(1, 1, 40, 32, 32))
    for attention, stride in zip(attentions, SHAPE.strides, strict=True):
        assert torch.allclose(attention.probabilities.sum(-1), torch.ones(()), atol=1e-5)
        assert attention.positions[0].tolist() == [stride / 4] * 3
        assert attention.positions.shape == (attention.probabilities.shape[-1], 3)
    # 20, 10, 5, 3 tokens along X: stages 2 and 3 pad to 12 and 8.
    assert [bool(a.valid.all()) for a in attentions] == [True, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": (4, 4, 8)}, "depths (2, 2, 8, 2) and heads (4, 4, 8) differ in length. Give one of each for every stage."),
        ({"embed": 30}, "4 heads do not divide the 30 channels of stage 1."),
        ({"drop_path": 1.0}, "drop_path 1.0 is not a rate. Give 0 or more, below 1."),
    ],
)
def test_a_wrong_shape_is_refused_in_words(arguments: dict, message: str):
    with pytest.raises(SettingsError) as caught:
        SwinShape(**arguments)
    assert str(caught.value) == message


def test_axes_in_signatures_are_checked_in_tests(encoder: SwinEncoder, view: torch.Tensor):
    with pytest.raises(TypeCheckError, match="'view'"):
        encoder(view[0])
    with pytest.raises(TypeCheckError, match="'hidden'"):
        encoder(view, torch.zeros(1, 16, 16, 16, dtype=torch.bool))


def test_recomputed_stages_give_the_same_bits_and_keep_fewer_activations():
    encoder = SwinEncoder(SwinShape(embed=12, depths=(2, 1, 1, 1), heads=(1, 1, 2, 2), drop_path=0.5))
    view, drop = torch.rand(2, 1, 24, 20, 16), torch.rand(encoder.branches, 2)
    results, kept = [], []
    for stages in (0, 2):
        encoder.recompute(stages)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            features = encoder(view, drop=drop)
            kept.append(sum(sizes))
        loss = torch.stack([x.square().mean() for x in features]).sum()
        results.append([*features, *torch.autograd.grad(loss, list(encoder.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0] / 3
