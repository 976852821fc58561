"""Proves that the encoder is one graph for torch.compile, with its window plans as constants, and that tracing leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensorMode

from dagman.devices import pin_attention
from dagman.model import SwinEncoder, SwinShape, semantic_attention
from dagman.model.window_attention import relative_positions
from dagman.model.windows import plan_windows
from dagman.settings import load_settings, resolve_settings
from dagman.training import assembly

SHAPE = SwinShape(embed=8, depths=(2, 1), heads=(1, 2))
PLAN_OPERATIONS = ("arange", "roll", "argsort", "cartesian_prod")


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(0)
    return SwinEncoder(SHAPE)


@pytest.fixture
def traceable() -> Iterator[None]:
    """Without the checks of shapes, which tests alone have and which are no part of a graph."""
    config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    config.update("jaxtyping_disable", False)


def _draw_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.rand(2, 1, 24, 16, 16), torch.rand(2, 12, 8, 8) > 0.5, torch.rand(SHAPE.branches, 2)


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")
def test_forward_and_backward_are_one_graph_with_the_same_values_and_no_plan_in_it(encoder, traceable):
    view, hidden, drop = _draw_inputs()
    operations: list[str] = []

    def run(graph, inputs):
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    compiled = torch.compile(encoder, fullgraph=True, dynamic=False, backend=run)
    outcomes = []
    for forward in (encoder, compiled):
        encoder.zero_grad()
        maps = forward(view, hidden, drop)
        sum(x.square().sum() for x in maps).backward()
        outcomes.append([*maps, *(p.grad.clone() for p in encoder.parameters())])
    with torch.no_grad():
        for inputs in ((view, hidden), (view, None, None, 1)):
            outcomes[0] += encoder(*inputs)
            outcomes[1] += compiled(*inputs)
    assert operations
    assert not [name for name in operations if any(word in name for word in PLAN_OPERATIONS)]
    # Compiled products are torch's own, where eager ones may be oneDNN's (docs/decisions/0027).
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")
@pytest.mark.parametrize(
    ("size", "assignments", "most"),
    [
        ("tiny", ["train.recompute=1"], 1),
        pytest.param("tiny", ["train.skip_hidden=true"], 2, marks=pytest.mark.slow),
        ("tiny-vit", ["train.recompute=1"], 1),
        pytest.param("tiny-resnet", [], 1, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_encoder_is_one_graph(size, assignments, most, traceable, monkeypatch):
    # As on a card, where the backends of torch's attention are pinned.
    monkeypatch.setattr(semantic_attention, "pin_attention", lambda device: pin_attention(torch.device("cuda")))
    small = ["view.side=32", "model.depths=[1, 1, 1, 1]", "projector.prototypes=64", "masking.mask_fill=token"]
    settings = resolve_settings(load_settings(size, None, assignments=[*small, *assignments])[0])[0]
    student, _ = assembly.build_networks(settings)
    encoder, graphs = student.encoder, []

    def run(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(encoder.encode, fullgraph=True, dynamic=None if encoder.skips_hidden else False, backend=run)
    view, drop = torch.rand(2, 1, 32, 32, 32), torch.rand(encoder.branches, 2) if encoder.branches else None
    # Each with another number of hidden units, as the steps of a run have it.
    for count in (3, 5, 9):
        units = torch.randperm(16).reshape(2, 2, 2, 2) < count
        hidden = units.repeat_interleave(8, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
        skipping = {"visible": (16 - count) * 8**3} if encoder.skips_hidden else {}
        outcomes = []
        for encode in (encoder.encode, compiled):
            encoder.zero_grad()
            maps = encode(view, hidden, drop=drop, **skipping).maps
            sum(x.square().mean() for x in maps).backward()
            grads = [p.grad for p in encoder.parameters() if p.grad is not None]
            outcomes.append(torch.cat([part.detach().flatten() for part in (*maps, *grads)]))
        assert (outcomes[0] - outcomes[1]).norm() < 1e-4 * outcomes[0].norm()
    assert len(graphs) == most


def test_fake_tensors_are_neither_kept_nor_given_what_was_kept(encoder):
    grid, device = (7, 5, 3), torch.device("cpu")
    with FakeTensorMode():
        traced = plan_windows(grid, 4, 2, device), relative_positions((4, 4, 3), 4, device)
    real = plan_windows(grid, 4, 2, device), relative_positions((4, 4, 3), 4, device)
    assert type(real[0].to_windows) is type(real[1]) is torch.Tensor
    assert type(traced[0].to_windows) is not torch.Tensor
    with FakeTensorMode():
        assert type(plan_windows(grid, 4, 2, device).to_windows) is not torch.Tensor
    assert plan_windows(grid, 4, 2, device) is real[0]
