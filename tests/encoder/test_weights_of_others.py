"""Weights of others are taken whole, by the layouts that public code writes, with MONAI's features; all else is refused in a line.

The files are made here from MONAI's own networks with random weights, named and ordered as each layout does.
"""

from __future__ import annotations

import argparse
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import dagman
from dagman.encoder.foreign.layouts import ORDERS, order_columns
from dagman.encoder.loading import load_encoder
from dagman.errors import EncoderError
from dagman.export.contents import describe_encoder
from dagman.export.forms import export_encoder

nets = pytest.importorskip("monai.networks.nets.swin_unetr", reason="needs the extra `monai`")

VIEW = torch.rand(1, 1, 64, 68, 65, generator=torch.Generator().manual_seed(1))
HEADS = {"encoder1.layer.conv1.conv.weight": torch.ones(2), "decoder5.transp_conv.conv.weight": torch.ones(2)}
SMIT_ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))


class OrderedMerging(nets.PatchMergingV2):
    """A patch merging with an order given by hand."""

    order: tuple[tuple[int, int, int], ...] = SMIT_ORDER

    def forward(self, x: Tensor) -> Tensor:
        _, d, h, w, _ = x.shape
        x = torch.nn.functional.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.order], dim=-1)))


class OldMerging(OrderedMerging):
    """MONAI's before it was mended."""

    order = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


def _make(**options) -> torch.nn.Module:
    swin = nets.SwinTransformer(1, 12, (4, 4, 4), (2, 2, 2), (1, 2, 1, 1), (1, 2, 2, 4), **options).eval()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in swin.named_parameters():
            spread = 0.3 if value.ndim == 1 or "table" in name else value[0].numel() ** -0.5
            value.copy_(float("norm" in name and name.endswith("weight")) + spread * torch.randn(value.shape, generator=draws))
    return swin


def _prefix(swin: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in swin.state_dict().items()}


def _as_smit(swin: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    def rename(name: str) -> str:
        name = re.sub(r"layers(\d)\.0", lambda found: f"layers.{int(found[1]) - 1}", name)
        return f"{prefix}transformer.{name.replace('.linear', '.fc')}"

    state = {rename(name): value for name, value in swin.state_dict().items()}
    return state | {f"{prefix}transformer.norm{i}.weight": torch.ones(12 << i) for i in range(4)}


def _compare(encoder, swin: torch.nn.Module) -> None:
    with torch.no_grad():
        wanted, got = swin(VIEW, normalize=False)[1:], encoder.network.encoder(VIEW)
    assert len(got) == len(wanted)
    for stage, (theirs, mine) in enumerate(zip(wanted, got, strict=True), start=1):
        gap = (theirs - mine).abs().max().item()
        print(f"x{stage}: largest difference {gap:.1e} of values to {theirs.abs().max():.1f}")
        assert gap < 1e-5


def _refuse(name: object) -> str:
    with pytest.raises(EncoderError) as error:
        load_encoder(f"monai:{name}", device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def swin() -> torch.nn.Module:
    return _make()


def test_an_ssl_head_in_every_wrapper(swin, tmp_path):
    path = tmp_path / "ssl.pt"
    heads = {"module.rotation_head.weight": torch.ones(2), "module.contrastive_head.bias": torch.ones(2)}
    state = _prefix(swin, "module.swinViT.") | heads | {"module.conv.weight": torch.ones(1)}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}, "args": argparse.Namespace(lr=1.0)}, path)
    encoder = load_encoder(f"monai:{path}", device="cpu")
    _compare(encoder, swin)
    assert (encoder.config.spacing, encoder.config.low, encoder.config.high) == (1.5, -1000.0, 1000.0)
    report = encoder.imported
    assert (report.layout, report.matched) == ("MONAI's SSLHead", len(swin.state_dict()))
    assert report.left_out == {"contrastive_head": 1, "conv": 1, "rotation_head": 1}
    assert "none left over; left out on purpose: contrastive_head (1)" in describe_encoder(encoder).made_from["imported"]


def test_a_whole_swin_unetr_and_what_is_stated_of_it(tmp_path):
    unetr = nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)).eval()
    torch.save(unetr.state_dict(), tmp_path / "unetr.pth")
    encoder = load_encoder(f"monai:{tmp_path / 'unetr.pth'}:spacing=1.5:low=-175:high=250:view=96", device="cpu")
    _compare(encoder, unetr.swinViT)
    assert sum(encoder.imported.left_out.values()) == len(unetr.state_dict()) - len(unetr.swinViT.state_dict())
    c = encoder.config
    assert (c.spacing, c.low, c.high, c.view, c.orientation) == (1.5, -175.0, 250.0, 96, "RAS")


def test_monais_public_ssl_weights_as_its_own_filter_reads_them(swin, tmp_path):
    state = {f"encoder.{name.replace('.0.', '.0.0.', 1)}": value for name, value in swin.state_dict().items()}
    read = dict(nets.filter_swinunetr(name, value) for name, value in state.items() if name.startswith("encoder.layers"))
    assert {name.removeprefix("swinViT.") for name in read} == {name for name in swin.state_dict() if name.startswith("layers")}
    others = {"encoder.mask_token": torch.ones(1), "encoder.norm.bias": torch.ones(2), "out.conv.conv.bias": torch.ones(1)}
    torch.save({"model": state | others}, tmp_path / "ssl.pth")
    encoder = load_encoder(f"monai:{tmp_path / 'ssl.pth'}:spacing=1.5:low=-1000:high=1000", device="cpu")
    _compare(encoder, swin)
    assert encoder.imported.left_out == {"encoder": 2, "out": 1}


def test_voco_with_its_convolutions(tmp_path):
    voco = _make(use_v2=True)
    heads = {f"module.{owner}.layer1.0.weight": torch.ones(2) for owner in ("student", "teacher")}
    unet = {f"module.backbone.{name}": value for name, value in HEADS.items()}
    torch.save({"global_step": 1, "state_dict": _prefix(voco, "module.backbone.swinViT.") | heads | unet}, tmp_path / "voco.pt")
    encoder = load_encoder(f"monai:{tmp_path / 'voco.pt'}", device="cpu")
    _compare(encoder, voco)
    assert encoder.imported.layout == "VoCo"
    assert (encoder.config.spacing, encoder.config.low, encoder.config.high, encoder.config.view) == (1.5, -175.0, 250.0, 64)
    with pytest.raises(EncoderError, match="cannot build"):
        export_encoder(encoder, "monai", tmp_path / "out")


def test_coralbay_as_its_class_writes_it_and_as_dino_does(tmp_path):
    coral = _make(use_v2=True)
    unet = {f"encoder10.layer.{name}.conv.weight": torch.ones(2) for name in ("conv1", "conv2")}
    folder = tmp_path / "coralbay"
    folder.mkdir()
    whole = _prefix(coral, "model.swinViT.") | {f"model.{name}": value for name, value in unet.items()}
    save_file(whole, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "coralbay"}')
    encoder = load_encoder(f"monai:{folder / 'model.safetensors'}", device="cpu")
    _compare(encoder, coral)
    report = encoder.imported
    assert (report.layout, report.matched, report.left_out) == ("CoralBay", len(coral.state_dict()), {"encoder10": 2})
    assert (encoder.config.spacing, encoder.config.low, encoder.config.high, encoder.config.view) == (1.5, -1000.0, 1000.0, 96)
    # DINO's own checkpoint: the teacher of the two, and its head by name.
    heads = {"module.head.mlp.0.weight": torch.ones(2), "module.head.last_layer.weight_g": torch.ones(2)}
    student = {name: torch.zeros_like(value) for name, value in _prefix(coral, "module.backbone.swinViT.").items()}
    teacher = _prefix(coral, "module.backbone.swinViT.") | heads
    torch.save({"student": student | heads, "teacher": teacher, "epoch": 1}, tmp_path / "dino.pth")
    dino = load_encoder(f"monai:{tmp_path / 'dino.pth'}", device="cpu")
    assert dino.digest == encoder.digest
    assert dino.imported.left_out == {"head": 2}
    save_file(whole | {"model.classifier.weight": torch.ones(1)}, folder / "model.safetensors")
    assert "1 is left over: classifier.weight" in _refuse(folder / "model.safetensors")


def _make_ctfm(**options) -> torch.nn.Module:
    segresnet = pytest.importorskip("monai.networks.nets.segresnet_ds")
    net = segresnet.SegResEncoder(**{"init_filters": 8, "blocks_down": (1, 2, 2, 4, 4)} | options).eval()
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "running" in name:
                # Statistics that are not those of a fresh batch norm.
                value.copy_(0.5 + torch.rand(value.shape, generator=draws))
            elif value.is_floating_point():
                value.copy_(float("norm" in name) + 0.1 * torch.randn(value.shape, generator=draws))
    return net


def test_ct_fm_along_the_axes_it_was_trained_on(tmp_path):
    net = _make_ctfm()
    decoder = {"up_layers.0.upsample.conv.weight": torch.ones(2), "up_layers.3.head.weight": torch.ones(2)}
    save_file({f"encoder.{name}": value for name, value in net.state_dict().items()} | decoder, tmp_path / "model.safetensors")
    encoder = load_encoder(f"monai:{tmp_path / 'model.safetensors'}", device="cpu")
    report, config = encoder.imported, encoder.config
    assert (report.layout, report.matched, report.left_out) == ("CT-FM (SegResNet)", len(net.state_dict()), {"up_layers": 2})
    assert "none left over" in str(report)
    assert "merging" not in str(report)
    assert (config.spacing, config.low, config.high) == (1.0, -1024.0, 2048.0)
    view = torch.rand(1, 1, 32, 16, 48, generator=torch.Generator().manual_seed(1))
    # MONAI's Orientation to SPL: the first axis runs to superior, the second to posterior, the third to left.
    spl = view.permute(0, 1, 4, 3, 2).flip(3, 4)
    with torch.no_grad():
        wanted, got = net(spl)[1:], encoder.network.encoder(view)
    for theirs, mine in zip(wanted, got, strict=True):
        assert (theirs - mine.permute(0, 1, 4, 3, 2).flip(3, 4)).abs().max() < 1e-5 * theirs.abs().max()
    # Its statistics stay what they are in training, and are kept.
    encoder.network.encoder.train()(view)
    encoder.save(tmp_path / "own")
    again = dagman.load(tmp_path / "own", device="cpu")
    assert torch.equal(again.network.encoder(view)[3], encoder.network.encoder(view)[3])


@pytest.mark.parametrize(
    ("options", "more", "text"),
    [
        ({}, {"classifier.weight": torch.ones(1)}, "1 is left over: classifier.weight"),
        ({"blocks_down": (1, 2, 2, 4)}, {}, "is a SegResNet of levels of 1, 2, 2, 4 blocks"),
        ({"norm": "instance"}, {}, "is a SegResNet without batch norm, as VISTA3D's"),
        ({"in_channels": 2}, {}, "its first convolution has the shape (8, 2, 3, 3, 3)"),
        ({"init_filters": 16}, {}, "is a SegResNet of 16 channels"),
        ({}, {"layers.1.blocks.0.norm1.running_var": None}, "1 is missing: encoder.net.layers.1.blocks.0.norm1.running_var"),
    ],
)
def test_another_segresnet_is_refused_by_what_differs(options, more, text, tmp_path):
    state = {name: value for name, value in (_make_ctfm(**options).state_dict() | more).items() if value is not None}
    save_file(state, tmp_path / "other.safetensors")
    assert text in _refuse(tmp_path / "other.safetensors")


def test_smit_pretrained_asks_for_its_preparation(tmp_path):
    smit = _make(patch_norm=True, downsample=OrderedMerging)
    path = tmp_path / "smit.pth"
    state = _as_smit(smit, "module.backbone.") | {"module.head.mlp.0.weight": torch.ones(2)}
    torch.save({"student": state, "teacher": {}, "epoch": 1}, path)
    assert "is a SMIT, but its preprocessing is not known. State it, such as monai:" in _refuse(path)
    encoder = load_encoder(f"monai:{path}:spacing=1:low=-500:high=500", device="cpu")
    _compare(encoder, smit)
    assert encoder.imported.left_out == {"head": 1, **{f"transformer.norm{i}": 1 for i in range(4)}}
    # Written as dagman's own, it comes back without the file.
    encoder.save(tmp_path / "own")
    assert dagman.load(tmp_path / "own", device="cpu").digest == encoder.digest


def test_smit_of_mhub_knows_its_preparation(tmp_path):
    smit = _make(patch_norm=True, downsample=OrderedMerging)
    state = _as_smit(smit, "") | HEADS | {"out.conv.conv.weight": torch.ones(2, 12, 1, 1, 1)}
    torch.save({"state_dict": state}, tmp_path / "model_Mhub.pt")
    encoder = load_encoder(f"monai:{tmp_path / 'model_Mhub.pt'}", device="cpu")
    _compare(encoder, smit)
    assert (encoder.config.spacing, encoder.config.low, encoder.config.high, encoder.config.view) == (1.5, -500.0, 500.0, 128)


def test_a_merging_that_repeats_tokens_is_stated(tmp_path):
    old = _make(downsample=OldMerging)
    save_file(_prefix(old, "swinViT."), tmp_path / "old.safetensors")
    stated = "spacing=1.5:low=-1000:high=1000:downsample=merging-before-fix"
    _compare(load_encoder(f"monai:{tmp_path / 'old.safetensors'}:{stated}", device="cpu"), old)
    assert "downsample=v3 is not a kind of patch merging" in _refuse(f"{tmp_path / 'old.safetensors'}:downsample=v3")


@pytest.mark.parametrize("merging", sorted(ORDERS))
def test_orders_are_permutations_that_lose_nothing(merging):
    assert sorted(ORDERS[merging]) == sorted(ORDERS["mergingv2"])
    state = {"layers1.0.downsample.reduction.weight": torch.arange(4.0 * 16).view(4, 16), "patch_embed.proj.bias": torch.ones(8)}
    ordered = order_columns(state, merging)
    assert torch.equal(ordered["patch_embed.proj.bias"], state["patch_embed.proj.bias"])
    for place, offset in enumerate(ORDERS["mergingv2"]):
        before = 2 * ORDERS[merging].index(offset)
        name = "layers1.0.downsample.reduction.weight"
        assert torch.equal(ordered[name][:, 2 * place : 2 * place + 2], state[name][:, before : before + 2])


class Dangerous:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("this line must never be printed",))


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, capsys):
    torch.save({"state_dict": Dangerous()}, tmp_path / "bad.pth")
    assert "holds more than weights, and loading it could run code (" in _refuse(tmp_path / "bad.pth")
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "is not a safetensors file" in _refuse(tmp_path / "bad.pkl")
    assert "never be printed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"meta": {"a": 1}, "names": ["x"]}, "holds no named weights"),
        ([1, 2], "it holds list"),
        ({"conv1.weight": torch.ones(2)}, "holds no SwinTransformer of MONAI, nor one of SMIT or VoCo"),
        ({"patch_embed.proj.weight": torch.ones(12, 3)}, "its patch projection has the shape (12, 3)"),
    ],
)
def test_foreign_files_are_refused_by_what_they_hold(held, text, tmp_path):
    torch.save(held, tmp_path / "other.pt")
    assert text in _refuse(f"{tmp_path / 'other.pt'}:spacing=1:low=0:high=1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"swinViT.layers2.0.blocks.0.norm1.bias": torch.ones(5)},
            "1 has another shape: encoder.swin.layers2.0.blocks.0.norm1.bias",
        ),
        ({"swinViT.layers1.0.downsample.norm.weight": None}, "1 is missing: encoder.swin.layers1.0.downsample.norm.weight"),
        ({"swinViT.layers1.0.spare": torch.ones(1)}, "1 has no place in it: encoder.swin.layers1.0.spare"),
        ({"classifier.weight": torch.ones(1)}, "1 is left over: classifier.weight"),
        ({"module.swinViT.patch_embed.proj.bias": torch.ones(12)}, "holds two weights with the same name"),
        ({"swinViT.patch_embed.proj.bias": torch.full((12,), torch.nan)}, "not finite numbers"),
        ({"swinViT.layers3.0.blocks.0.attn.relative_position_bias_table": torch.ones(7, 2)}, "the bias table of stage 3"),
    ],
)
def test_what_is_missing_left_over_or_of_another_shape_is_named(swin, change, text, tmp_path):
    state = {name: value for name, value in (_prefix(swin, "swinViT.") | change).items() if value is not None}
    torch.save(state, tmp_path / "changed.pt")
    assert text in _refuse(f"{tmp_path / 'changed.pt'}:spacing=1:low=0:high=1")


@pytest.mark.parametrize("stated", ["spacing=x:low=0:high=1", "spacing=1:low=2:high=1", "spacing=0:low=0:high=1", "side=4"])
def test_a_statement_that_is_none_is_refused(swin, stated, tmp_path):
    torch.save(_prefix(swin, ""), tmp_path / "plain.pt")
    assert str(tmp_path / "plain.pt") in _refuse(f"{tmp_path / 'plain.pt'}:{stated}")
