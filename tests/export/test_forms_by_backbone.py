"""Proves that other programs give dagman's features with exported ViTs and CNNs: MONAI by its card, transformers, nnU-Net."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dagman.export.bundle import network as bundle_network
from dagman.export.cnn_graph import ConvolutionalGraph
from dagman.export.forms import export_encoder, export_model
from dagman.export.graph import convert_graph, list_notes, trace_graph
from dagman.export.nnunet.plans import adapt_plans
from dagman.model import to_unit_range
from dagman.model.foreign import ResidualEncoderStages
from dagman.tables.structures import Structure
from dagman.tasks.segment.model import start_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
_PLANS = {
    "transpose_backward": [0, 1, 2],
    "original_median_spacing_after_transp": [2.0, 2.0, 2.0],
    "original_median_shape_after_transp": [64, 64, 64],
    "foreground_intensity_properties_per_channel": {"0": {"percentile_00_5": -100.0, "percentile_99_5": 200.0}},
    "configurations": {"3d_fullres": {}},
}
_DATASET = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
_FOREIGN = ("resnet3d:10", "resenc:8", "segresnet:8", "monai-swin")


def _run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def _scale(names: dict[str, Any], view: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.as_tensor(names["read"].transforms[-1](one)) for one in view]).float()


def _measure_gap(wanted: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """The largest difference of any two maps of one stage."""
    return max((one - other).abs().max().item() for one, other in zip(wanted, got, strict=True))


def test_monais_vit_takes_all_weights_with_equal_tokens_and_cls(make_encoder, make_view, tmp_path: Path, monkeypatch):
    pytest.importorskip("monai", reason="needs the extra `monai`")
    encoder = make_encoder("vit")
    exported = export_encoder(encoder, "monai", tmp_path / "out")
    assert exported.left_out == ("the mask token",)
    names = _run_card(tmp_path / "out", monkeypatch)
    view = make_view(64, 64, 64, batch=2)
    with torch.no_grad():
        _, tokens = names["net"](_scale(names, view))
    # The expression that the card gives.
    maps = [tokens[n][:, 1:].mT.unflatten(2, (4,) * 3) for n in [0, 2, 3, 4]]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "# [tokens[n][:, 1:].mT.unflatten(2, (4,) * 3) for n in [0, 2, 3, 4]]" in card
    assert _measure_gap(encoder.features(view), maps) < 1e-5
    cls = encoder.network.encoder.encode(to_unit_range(view, -900.0, 400.0)).cls
    assert (cls - tokens[-1][:, 0]).abs().max() < 1e-5
    assert "It was not trained" not in card
    untrained = replace(encoder, config=replace(encoder.config, semantic=None, method="simmim"))
    assert any("It was not trained" in note for note in export_encoder(untrained, "monai", tmp_path / "again").notes)


def test_monais_resnet_takes_all_weights_with_equal_maps(make_encoder, make_view, tmp_path: Path, monkeypatch):
    encoder = make_encoder("resnet3d:10")
    export_encoder(encoder, "monai", tmp_path / "out")
    names = _run_card(tmp_path / "out", monkeypatch)
    view = make_view(33, 40, 51)
    with torch.no_grad():
        assert _measure_gap(encoder.features(view), names["map_view"](_scale(names, view))) < 1e-5


def test_monais_segresnet_takes_all_weights_with_equal_maps(make_encoder, make_view, tmp_path: Path, monkeypatch):
    encoder = make_encoder("segresnet:8")
    export_encoder(encoder, "monai", tmp_path / "out")
    names = _run_card(tmp_path / "out", monkeypatch)
    view = make_view(64, 32, 48)
    assert 'Orientation("SPL"' in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    # What Orientation("SPL") makes of R A S.
    turned = _scale(names, view).transpose(2, 4).flip(3, 4)
    with torch.no_grad():
        maps = [x.flip(3, 4).transpose(2, 4) for x in names["net"].encoder.eval()(turned)[1:]]
    assert _measure_gap(encoder.features(view), maps) < 1e-5


@pytest.mark.parametrize("name", _FOREIGN)
def test_transformers_gives_equal_features_without_dagman(name: str, make_encoder, make_view, tmp_path: Path):
    pytest.importorskip("transformers", reason="needs the extra `hub`")
    encoder = make_encoder(name)
    exported = export_encoder(encoder, "hf", tmp_path / "out")
    code = (tmp_path / "out" / "modeling_dagman.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) dagman", code, re.MULTILINE)
    package = "dynamic_network_architectures" if name.startswith("resenc") else "monai"
    # At the head, where transformers looks for what is missing.
    assert re.search(rf"^import {package}$", code, re.MULTILINE)
    assert any(package in note for note in exported.notes)
    names = runpy.run_path(str(tmp_path / "out" / "modeling_dagman.py"))
    model = names["DagmanModel"](names["DagmanConfig"].from_pretrained(tmp_path / "out")).eval()
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    view = make_view(34, 33, 47)
    with torch.no_grad():
        maps = model(to_unit_range(view, -900.0, 400.0)).feature_maps
    assert _measure_gap(encoder.features(view), maps) < 1e-5


@pytest.mark.parametrize("name", ["vit", "resnet3d:10"])
def test_the_trainer_for_nnunet_builds_it_with_equal_features(name: str, make_encoder, make_view, tmp_path: Path, monkeypatch):
    encoder = make_encoder(name)
    export_encoder(encoder, "nnunet", tmp_path / "out")
    module = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    for end in range(1, 5):
        part = ".".join(module.split(".")[:end])
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setattr(sys.modules[module], "nnUNetTrainer", object, raising=False)
    names = runpy.run_path(str(tmp_path / "out" / "dagman_trainer.py"))
    network = json.loads((tmp_path / "out" / "network.json").read_text(encoding="utf-8"))
    plans = adapt_plans(_PLANS, _DATASET, network, name="dagmanPlans")["configurations"]["3d_fullres"]
    configuration = SimpleNamespace(network_arch_init_kwargs=plans["architecture"]["arch_kwargs"])
    built = names["DagmanTrainer"].build_network_architecture(None, configuration, 1, 3).eval()
    built.encoder.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"))
    view = make_view(64, 64, 64)
    with torch.no_grad():
        assert _measure_gap(encoder.features(view), built.encoder(to_unit_range(view, -900.0, 400.0))) < 1e-5
        assert built(to_unit_range(view, -900.0, 400.0)).shape == (1, 3, 64, 64, 64)


def test_nnunets_own_network_takes_the_residual_encoder(make_encoder, make_view, tmp_path: Path):
    """By the rules of nnU-Net 2.8.1: its plans' class and arguments, its normalisation, and what -pretrained_weights checks."""
    import pydoc

    encoder = make_encoder("resenc:8")
    export_encoder(encoder, "nnunet", tmp_path / "out")
    network = json.loads((tmp_path / "out" / "network.json").read_text(encoding="utf-8"))
    adapted = adapt_plans(_PLANS, _DATASET, network, name="dagmanPlans")
    architecture = adapted["configurations"]["3d_fullres"]["architecture"]
    kwargs = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        kwargs[key] = pydoc.locate(kwargs[key]) if kwargs[key] is not None else None
    unet: Any = pydoc.locate(architecture["network_class_name"])
    built = unet(input_channels=1, num_classes=4, deep_supervision=True, **kwargs).eval()
    held = torch.load(tmp_path / "out" / "pretrained.pth", weights_only=True)
    wanted = {name: value for name, value in built.state_dict().items() if ".seg_layers." not in name}
    assert all(held["network_weights"][name].shape == value.shape for name, value in wanted.items())
    built.load_state_dict({**built.state_dict(), **{name: held["network_weights"][name] for name in wanted}})
    hu = make_view(64, 64, 64)
    values = adapted["foreground_intensity_properties_per_channel"]["0"]
    view = (hu.clamp(values["percentile_00_5"], values["percentile_99_5"]) - values["mean"]) / values["std"]
    with torch.no_grad():
        own = encoder.network.encoder.stem[0](to_unit_range(hu, -900.0, 400.0))
        assert (own - view).abs().max() < 1e-6
        maps = encoder.features(hu)
        assert _measure_gap(maps, built.encoder(own)[2:]) < 1e-5
        # Norm after norm raises the last digit of the two views: dagman's own features are as far from those of float64.
        graph = ConvolutionalGraph(encoder.network.encoder, -900.0, 400.0)
        for other in (built.encoder(view)[2:], graph(hu)):
            assert all((one - two).abs().max() < 1e-4 * one.std() for one, two in zip(maps, other, strict=True))
        # What dagman refuses, and the card warns of.
        assert graph(make_view(32, 32, 20))[-1].shape[2:] == (1, 1, 1)
    assert "a side longer than 32 voxels" in list_notes(encoder)[-1]
    plan = held["nnssl_adaptation_plan"]
    assert plan["architecture_plans"]["arch_class_name"] == "ResidualEncoderUNet"
    assert built.key_to_encoder == plan["key_to_encoder"]
    assert built.key_to_stem == plan["key_to_stem"]
    assert list(built.keys_to_in_proj) == plan["keys_to_in_proj"]


def test_one_traced_graph_of_a_resnet_serves_all_views(make_encoder, make_view):
    encoder = make_encoder("resnet3d:10")
    graph = trace_graph(ConvolutionalGraph(encoder.network.encoder, -900.0, 400.0)).module()
    for sides in [(1, 32, 64, 32), (2, 33, 47, 20), (1, 17, 9, 90)]:
        view = make_view(*sides[1:], batch=sides[0])
        with torch.no_grad():
            assert _measure_gap(encoder.features(view), graph(view)) < 1e-5


def test_one_onnx_graph_of_a_residual_encoder_serves_all_views(make_encoder, make_view):
    """A convolution a stage in place of nnU-Net's blocks, norms of the most and the fewest voxels: it takes time by the layer."""
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")

    def stage(inputs: int, outputs: int, stride: int, normed: bool = False) -> torch.nn.Module:
        norm = torch.nn.InstanceNorm3d(outputs, affine=True) if normed else torch.nn.Identity()
        return torch.nn.Sequential(torch.nn.Conv3d(inputs, outputs, 3, stride, padding=1), norm)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rest = [SimpleNamespace(blocks=stage(2, 2, 2, normed=number == 3)) for number in range(4)]
        stages = [stage(2, 2, 1, normed=True), stage(2, 2, 2), *rest]
        encoder = SimpleNamespace(stem=stage(1, 2, 1)[0], stages=stages, output_channels=[2] * 6)
    backbone = ResidualEncoderStages(encoder).eval().requires_grad_(False)
    model = convert_graph(trace_graph(ConvolutionalGraph(backbone, -900.0, 400.0)), maps=4)
    session = runtime.InferenceSession(model.SerializeToString())
    for sides in [(1, 64, 64, 64), (2, 33, 70, 97), (1, 96, 65, 40)]:
        view = make_view(*sides[1:], batch=sides[0])
        got = [torch.from_numpy(x) for x in session.run(None, {"hu": view.numpy()})]
        assert _measure_gap(backbone(to_unit_range(view, -900.0, 400.0)), got) < 1e-4


def test_a_bundle_takes_a_model_on_a_cnn(make_encoder, make_view, tmp_path: Path, monkeypatch):
    model = start_model(make_encoder("segresnet:8"), [Structure(name="liver", values=(6,))])
    model.network.requires_grad_(False).eval()
    export_model(model, "monai-bundle", tmp_path / "out")
    names = runpy.run_path(str(tmp_path / "out" / "scripts" / "dagman_network.py"))
    network = names[bundle_network.load_network.__name__](str(tmp_path / "out" / "models"))
    view = to_unit_range(make_view(32, 64, 32), -900.0, 400.0)
    with torch.no_grad():
        torch.testing.assert_close(network(view), model.network(view).softmax(dim=1))
