"""Proves that a ViT's exported graph and its file for transformers give its features and attention, for any batch and sides."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.encoder.loading import load_encoder
from dagman.export.forms import export_encoder
from dagman.export.graph import convert_graph, trace_graph
from dagman.export.vit_graph import ViTGraph
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import ViTEncoder, ViTShape, to_unit_range

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
# Positions as learned and interpolated, sides that divide and that do not, a side of one token.
VIEWS = [(1, 64, 64, 64), (2, 33, 70, 97), (1, 17, 9, 130)]


@pytest.fixture(scope="module")
def backbone() -> ViTEncoder:
    torch.manual_seed(0)
    shape = ViTShape(embed=12, depths=(1, 1, 1, 1), heads=(2, 2, 2, 2), view=64)
    return ViTEncoder(shape).eval().requires_grad_(False)


def test_one_traced_graph_serves_all_views(backbone: ViTEncoder, make_view):
    graph = trace_graph(ViTGraph(backbone, -900.0, 400.0)).module()
    for sides in VIEWS:
        view = make_view(*sides[1:], batch=sides[0])
        for wanted, got in zip(backbone(to_unit_range(view, -900.0, 400.0)), graph(view), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_onnx_graph_serves_all_views(make_view):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    one = ViTEncoder(ViTShape(embed=12, depths=(1,), heads=(2,), view=64)).eval().requires_grad_(False)
    model = convert_graph(trace_graph(ViTGraph(one, -900.0, 400.0)), maps=1)
    session = runtime.InferenceSession(model.SerializeToString())
    for sides in VIEWS:
        view = make_view(*sides[1:], batch=sides[0])
        (got,) = session.run(["x1"], {"hu": view.numpy()})
        (wanted,) = one(to_unit_range(view, -900.0, 400.0))
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=1e-4)


def test_the_code_for_transformers_gives_its_features_and_attention(make_view, tmp_path: Path):
    pytest.importorskip("transformers", reason="needs the extra `hub`")
    shape = ViTShape(embed=12, depths=(1, 1, 1, 1), heads=(2, 2, 2, 2), view=64)
    semantic = SemanticShape(stage=4, heads=2, depth=0)
    network = Network(shape, semantic, ProjectorShape(names=()), backbone="vit", reconstruct=False).eval()
    config = EncoderConfig(
        shape=shape,
        semantic=semantic,
        size="tiny-vit",
        method="dagman",
        spacing=2.0,
        low=-900.0,
        high=400.0,
        view=64,
        backbone="vit",
    )
    write_encoder(tmp_path / "encoder", config, network.state_dict())
    encoder = load_encoder(tmp_path / "encoder", device="cpu")
    export_encoder(encoder, "hf", tmp_path / "out")
    code = (tmp_path / "out" / "modeling_dagman.py").read_text(encoding="utf-8")
    assert "import dagman" not in code
    assert "from dagman" not in code
    names = runpy.run_path(str(tmp_path / "out" / "modeling_dagman.py"))
    model = names["DagmanModel"](names["DagmanConfig"].from_pretrained(tmp_path / "out")).eval()
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    view = make_view(64, 50, 80, batch=2)
    with torch.no_grad():
        given = model(to_unit_range(view, config.low, config.high))
    for wanted, got in zip(encoder.features(view), given.feature_maps, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(given.attentions[0], encoder.attend(view), rtol=0, atol=1e-6)
    assert "of 16, 16, 16, 16 voxels a token" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
