"""The contract of every backbone, and of every size: shapes, strides, layers, gradients, masks, attention, bf16, saving, exports.

What is not installed is skipped: MONAI's networks (extra `monai`), nnU-Net's encoder (extra `cnn`). Every size is built and run on
torch's meta device, which computes shapes and no numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig
from dagman.encoder.loading import describe_shapes, load_encoder
from dagman.errors import EncoderError, MissingExtraError, SettingsError
from dagman.export.backbones import EXPORTS, FORMS, Exports, make_graph, register_exports
from dagman.export.forms import export_encoder
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import BACKBONES, SwinShape, ViTShape, build_backbone, register_backbone
from dagman.settings import list_presets, load_settings
from dagman.training.assembly import check_backbone

SHAPES = {
    "swin": SwinShape(embed=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4)),
    "vit": ViTShape(embed=16, depths=(1, 1, 2, 1), heads=(2, 2, 2, 2), view=64),
    "resnet3d:10": None,
    "resenc:8": None,
    "segresnet:8": SwinShape(embed=8, depths=(2, 2, 4, 4), heads=(1, 1, 1, 1)),
    "monai-swin": SwinShape(embed=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)),
    "monai-swin:merging": SwinShape(embed=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4)),
}
OWN_CLS = SemanticShape(stage=4, heads=2, depth=0)


@pytest.fixture(scope="module", params=SHAPES)
def encoder(request) -> Encoder:
    """An encoder of each backbone with fresh weights, and semantic attention where it is not a network of others."""
    name = request.param
    kind = BACKBONES[name.partition(":")[0]]
    shape = SHAPES[name] or kind.baselines[name.partition(":")[2]]
    semantic = {"swin": SemanticShape(heads=2), "vit": OWN_CLS}.get(name)
    config = EncoderConfig(
        shape=shape, semantic=semantic, size=name, method="dagman", spacing=2.0, low=-1000.0, high=500.0, view=64, backbone=name,
        mask_fill="token" if "token" in kind.mask_fills else "zero",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = Network(
                shape, semantic, ProjectorShape(names=()), reconstruct=False, backbone=name, mask_fill=config.mask_fill
            )
        except MissingExtraError as missing:
            pytest.skip(str(missing))
    return Encoder(network=network.requires_grad_(False).eval(), config=config, source="fresh")


@pytest.fixture
def backbone(encoder):
    return encoder.network.encoder


def _draw(*sides: int, views: int = 1) -> torch.Tensor:
    return torch.rand(views, 1, *sides, generator=torch.Generator().manual_seed(sum(sides)))


@pytest.mark.parametrize("sides", [(64, 32, 32), (33, 47, 35)])
def test_the_maps_have_the_widths_and_strides_announced(backbone, sides):
    maps = backbone(_draw(*sides))
    for x, width, stride in zip(maps, backbone.widths, backbone.strides, strict=True):
        assert x.shape == (1, width, *(-(-side // stride) for side in sides))
        assert torch.isfinite(x).all()
    fewer = backbone(_draw(*sides), stages=2)
    assert len(fewer) == 2
    assert torch.equal(fewer[1], maps[1])
    assert all(torch.equal(one, other) for one, other in zip(backbone.encode(_draw(*sides)).maps, maps, strict=True))


def test_a_view_has_the_features_that_it_has_alone(backbone):
    views = _draw(64, 32, 32, views=2)
    for together, alone in zip(backbone(views), backbone(views[1:]), strict=True):
        # Instance norm over the two voxels of x4 raises rounding where they are nearly equal: nnU-Net's is at 0.005.
        assert float((together[1:] - alone).norm() / alone.norm()) < 0.02


def test_the_layers_hold_every_parameter_once_and_in_order(backbone):
    layers = backbone.layers()
    listed = [id(p) for layer in layers for p in layer]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters())
    # The loss of a map reaches the layers below it and no other: so they stand in the order of the forward pass.
    with _Learning(backbone):
        backbone(_draw(64, 32, 32), stages=2)[1].sum().backward()
        reached = [any(p.grad is not None for p in layer) for layer in layers]
    assert reached == sorted(reached, reverse=True)
    assert any(reached)
    assert not all(reached)


def _takes_masks(encoder: Encoder) -> bool:
    return bool(BACKBONES[encoder.config.backbone.partition(":")[0]].mask_fills)


def test_every_parameter_gets_a_gradient(encoder, backbone):
    hidden = torch.zeros(1, 32, 16, 16, dtype=torch.bool) if _takes_masks(encoder) else None
    if hidden is not None:
        hidden[:, :8] = True
    with _Learning(backbone):
        maps = backbone(_draw(64, 32, 32), hidden, drop=torch.ones(backbone.branches, 1))
        # A mean alone would reach nothing before a norm.
        sum((x * torch.linspace(-1, 1, x[0, 0].numel()).view_as(x[0, 0])).square().sum() for x in maps).backward()
        missed = [name for name, p in backbone.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        flat = [name for name, p in backbone.named_parameters() if p.grad is not None and not p.grad.any()]
    assert missed == []
    # Before an instance norm a bias has no effect: nnU-Net's convolutions have one.
    assert [name for name in flat if not name.endswith("all_modules.0.bias")] == []


def test_what_is_masked_is_not_seen(encoder, backbone):
    view, hidden = _draw(64, 32, 32), torch.zeros(1, 32, 16, 16, dtype=torch.bool)
    if not _takes_masks(encoder):
        with pytest.raises(ValueError, match="does not support masks"):
            backbone(view, hidden)
        return
    assert encoder.config.mask_fill in BACKBONES[encoder.config.backbone.partition(":")[0]].mask_fills
    assert torch.equal(backbone(view, hidden)[3], backbone(view)[3])
    hidden[:, :8] = True
    other = view.clone()
    other[:, :, :16] = _draw(16, 32, 32)
    assert torch.equal(backbone(view, hidden)[0], backbone(other, hidden)[0])
    assert not torch.equal(backbone(view, hidden)[0], backbone(view)[0])


def test_a_forward_pass_draws_no_random_number(backbone):
    before = torch.random.get_rng_state()
    backbone.train()(_draw(64, 32, 32))
    backbone.eval()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_of_attention_sum_to_one(encoder, backbone):
    view = _draw(64, 32, 32)
    for stage, attention in enumerate(backbone.attention_of(view), start=1):
        rows = attention.probabilities.sum(dim=-1)
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5), stage
    if encoder.config.semantic is None:
        assert backbone.attention_of(view) == []
        with pytest.raises(EncoderError, match="has no semantic attention"):
            encoder.attend(view)
        return
    heads = encoder.attend(view)
    assert heads.shape == (1, 2, 4, 2, 2)
    # Less the [CLS] token's own entry.
    assert (heads.flatten(2).sum(dim=-1) < 1).all()
    assert (heads > 0).all()


def test_bfloat16_is_the_same_to_its_rounding(backbone):
    view = _draw(64, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = backbone(view)
    for half, full in zip(halves, backbone(view), strict=True):
        assert float((half.float() - full).norm() / full.norm()) < 0.03


def test_values_that_are_not_finite_are_refused(encoder):
    view = _draw(64, 32, 32) * 1000
    view[0, 0, 5, 5, 5] = torch.nan
    with pytest.raises(EncoderError, match="holds values that are not finite numbers"):
        encoder.features(view)


def test_what_is_saved_is_loaded_with_the_same_features(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder", device="cpu")
    assert (again.config, again.digest) == (encoder.config, encoder.digest)
    view = (_draw(64, 32, 32) * 1500 - 1000).to(torch.int16)
    assert all(torch.equal(one, other) for one, other in zip(again.features(view), encoder.features(view), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_written_or_refused_with_what_to_use(encoder, form, tmp_path: Path):
    """That the other program reads it: tests/export."""
    name = encoder.config.backbone
    if not EXPORTS[name.partition(":")[0]].find(form):
        with pytest.raises(EncoderError, match=rf"is a {name}; .* Use --to ") as refused:
            export_encoder(encoder, form, tmp_path / form)
        assert "\n" not in str(refused.value)
        return
    if form == "onnx":
        return  # the same module
    if form == "torch-export":
        # The module that is traced: tracing every backbone would take minutes.
        view = (_draw(64, 33, 47) * 1500 - 1000).round()
        for wanted, got in zip(encoder.features(view), make_graph(encoder)(view), strict=True):
            assert wanted.shape == got.shape
            assert (wanted - got).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))
        return
    pytest.importorskip("transformers" if form == "hf" else "torch", reason="needs the extra `hub`")
    exported = export_encoder(encoder, form, tmp_path / form)
    written = {path.name for path in (tmp_path / form).iterdir()}
    assert written == {*exported.files, "README.md", "preprocessing.json"}
    card = (tmp_path / form / "README.md").read_text(encoding="utf-8")
    assert exported.usage.strip() in card
    assert exported.usage.count("\n") > 2


@pytest.mark.parametrize("size", list_presets("sizes"))
def test_every_size_has_a_say_on_every_form(size):
    exports = EXPORTS[load_settings(size)[0].model.backbone.partition(":")[0]]
    assert all(bool(exports.find(form)) != (form in exports.refused) for form in FORMS)


def test_a_backbone_of_ones_own_states_its_forms_in_one_place(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(EXPORTS, "mine", Exports(writers={"monai": "dagman.export.monai.swin:write_swin"}))
    with pytest.raises(ValueError, match="registered already"):
        register_exports("mine", Exports())
    named = {name: replace(encoder, config=replace(encoder.config, backbone=name)) for name in ("mine:2", "none")}
    with pytest.raises(EncoderError, match=r"is a mine:2; it has no form for ONNX\. Use --to monai\."):
        export_encoder(named["mine:2"], "onnx", tmp_path / "out")
    with pytest.raises(EncoderError, match=r"is a none; it has no form for ONNX\. Keep its encoder folder"):
        export_encoder(named["none"], "onnx", tmp_path / "out")


@pytest.mark.parametrize("size", list_presets("sizes"))
def test_every_size_is_built_and_gives_its_maps(size):
    settings, _ = load_settings(size)
    shape, semantic = describe_shapes(settings)
    try:
        with torch.device("meta"):
            network = Network(shape, semantic, ProjectorShape(names=()), backbone=settings.model.backbone)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    side, backbone = settings.view.side, network.encoder
    maps = backbone(torch.empty(1, 1, side, 64, 64, device="meta"))
    for x, width, stride in zip(maps, backbone.widths, backbone.strides, strict=True):
        assert x.shape == (1, width, side // stride, 64 // stride, 64 // stride)
    assert network.reconstruction(maps[3]).shape == (1, 1, side, 64, 64)
    if not size.endswith(("-resnet", "-resenc")):
        assert shape.widths == backbone.widths
    # Paper, App. A: channels of x3, and of all tokens of the ViT.
    assert {"paper": 384, "paper-vit": 768}.get(size, backbone.widths[2]) == backbone.widths[2]


def test_a_view_too_small_for_instance_norm_is_refused():
    with pytest.raises(SettingsError, match=r"view.side = 32 is too small for the backbone 'resenc:8'.* Set view.side=64 or more"):
        check_backbone(load_settings("tiny-resenc", assignments=["view.side=32"])[0])
    pytest.importorskip("dynamic_network_architectures")
    backbone = build_backbone("resenc:8", BACKBONES["resenc"].baselines["8"])
    with pytest.raises(SettingsError, match="for a view of 32 x 32 x 32 voxels, x4 of resenc is a single voxel"):
        backbone(_draw(32, 32, 32))


@pytest.mark.parametrize("name", ["swim", "resnet3d:11", "monai-swin:v3", "vit:16", "resenc"])
def test_an_unknown_backbone_names_those_there_are(name):
    with pytest.raises(EncoderError, match=rf"there is no backbone '{name}'\. Use "):
        build_backbone(name, SHAPES["swin"])


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="already registered"):
        register_backbone("swin", BACKBONES["swin"])


class _Learning:
    """With gradients, which are cleared afterwards: the encoders are made once for all tests."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.backbone = backbone

    def __enter__(self) -> None:
        self.backbone.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        self.backbone.requires_grad_(False).zero_grad(set_to_none=True)
