"""Proves that one exported graph equals the encoder for any batch and any sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dagman.export.graph import convert_graph, trace_graph
from dagman.export.swin_graph import FeatureGraph
from dagman.model import SwinEncoder, SwinShape, to_unit_range

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
# Windows cut short, shifted and unshifted, padded; sides that divide and that do not.
VIEWS = [(1, 64, 64, 64), (2, 33, 70, 97), (1, 96, 32, 40), (1, 17, 9, 130)]


@pytest.mark.parametrize("sides", VIEWS, ids=str)
def test_the_form_for_graphs_equals_the_encoder(encoder, make_view, sides: tuple[int, ...]):
    graph = FeatureGraph(encoder.network.encoder, -900.0, 400.0)
    view = make_view(*sides[1:], batch=sides[0])
    with torch.no_grad():
        for wanted, got in zip(encoder.features(view), graph(view), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_traced_graph_serves_all_views(make_view, tmp_path: Path):
    # Two stages of the four: tracing takes time by the block. The second block shifts its windows.
    swin = SwinEncoder(SwinShape(embed=4, depths=(2, 1), heads=(1, 2))).eval().requires_grad_(False)
    torch.export.save(trace_graph(FeatureGraph(swin, -900.0, 400.0)), tmp_path / "graph.pt2")
    graph = torch.export.load(tmp_path / "graph.pt2").module()
    for sides in VIEWS:
        view = make_view(*sides[1:], batch=sides[0])
        with torch.no_grad():
            for wanted, got in zip(swin(to_unit_range(view, -900.0, 400.0)), graph(view), strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_onnx_graph_serves_all_views(make_view):
    # One stage is the least that shifts windows, pads and merges: 12 s of a processor, 9 of them torch's conversion.
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    swin = SwinEncoder(SwinShape(embed=4, depths=(2,), heads=(1,))).eval().requires_grad_(False)
    model = convert_graph(trace_graph(FeatureGraph(swin, -900.0, 400.0)), maps=1)
    session = runtime.InferenceSession(model.SerializeToString())
    for sides in VIEWS[1:]:
        view = make_view(*sides[1:], batch=sides[0])
        (got,) = session.run(["x1"], {"hu": view.numpy()})
        with torch.no_grad():
            (wanted,) = swin(to_unit_range(view, -900.0, 400.0))
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=1e-4)
