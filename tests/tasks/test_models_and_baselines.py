"""Proves what a MODEL may be, that foreign networks stand where an encoder stands, and the baselines against hand-made cases."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dagman.encoder.folder import write_encoder
from dagman.encoder.loading import load_encoder
from dagman.encoder.reader import ANY_SCAN
from dagman.errors import EncoderError, TableError, TaskError
from dagman.tasks.inputs.descriptors import describe_histogram, describe_pixels, describe_size, measure_size
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.models import (
    load_network,
    name_models,
    parse_model,
)


@pytest.mark.parametrize(
    ("text", "kind", "has_network"),
    [
        ("scratch:tiny", "scratch", True),
        ("scratch:small:3", "scratch", True),
        ("resnet3d:18", "backbone", True),
        ("radiomics:size", "radiomics", False),
        ("pixels", "pixels", False),
        ("histogram", "histogram", False),
    ],
)
def test_a_model_is_known_by_its_name(text, kind, has_network):
    spec = parse_model(text)
    assert (spec.kind, spec.has_network, spec.name) == (kind, has_network, text)


def test_a_folder_is_an_encoder_and_is_called_by_its_name(small_encoder_folder):
    spec = parse_model(small_encoder_folder)
    assert (spec.kind, spec.name) == ("encoder", "encoder")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("scratch:tinny", "Nearest: scratch:tiny"),
        ("scrach:tiny", "Nearest: scratch:tiny"),
        ("resnet3d:81", "Nearest: resnet3d:"),
        ("radiomics", "Nearest: radiomics:size"),
        ("pixel", "Nearest: pixels"),
        ("runs/zzz", "Give a run or an encoder folder"),
    ],
)
def test_a_misspelt_model_names_the_nearest(text, advice):
    with pytest.raises(TaskError) as error:
        parse_model(text)
    assert advice in str(error.value)
    assert str(error.value).startswith(text)


def test_absent_monai_weights_are_said():
    with pytest.raises(TaskError, match="does not exist"):
        parse_model("monai:nowhere.safetensors")


def test_models_have_different_names(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
    same = [parse_model(tmp_path / parent / "run") for parent in ("a", "b")]
    assert len(set(name_models(same))) == 2
    with pytest.raises(TaskError, match="named twice"):
        name_models([parse_model("pixels"), parse_model("pixels")])


def test_a_baseline_without_weights_cannot_be_loaded_as_a_network():
    with pytest.raises(TaskError, match="has no weights"):
        load_network(parse_model("pixels"))


def test_the_reader_takes_any_modality():
    assert ANY_SCAN.modalities == ("CT", "MR", "other")
    assert ANY_SCAN.preparation == load_encoder("scratch:tiny", device="cpu").preparation


def test_a_resnet_gives_four_maps_at_the_strides_of_an_encoder():
    pytest.importorskip("monai")
    first, same, other = (load_network(parse_model(f"resnet3d:10:{seed}"), device="cpu") for seed in (0, 0, 1))
    view = torch.full((1, 1, 32, 32, 32), -200, dtype=torch.int16)
    maps = first.features(view)
    assert [tuple(m.shape) for m in maps] == [(1, 64 << i, 8 >> i, 8 >> i, 8 >> i) for i in range(4)]
    assert [m.shape[1] for m in maps] == list(first.config.shape.widths)
    assert len(first.features(view, stages=(2,))) == 1
    assert first.digest == same.digest != other.digest
    assert torch.equal(maps[3], same.features(view)[3])


def test_a_resnet_trains_one_item_at_a_time_as_it_would_a_batch():
    pytest.importorskip("monai")
    network = load_network(parse_model("resnet3d:10"), device="cpu").network.encoder.train()
    views = torch.rand((2, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0))
    together, apart = network(views), [network(view[None]) for view in views]
    for index, maps in enumerate(together):
        torch.testing.assert_close(maps, torch.cat([one[index] for one in apart]), atol=1e-4, rtol=1e-4)


def test_a_resnet_is_saved_and_loaded_again(tmp_path):
    pytest.importorskip("monai")
    encoder = load_network(parse_model("resnet3d:10:5"), device="cpu")
    encoder.save(tmp_path / "model")
    again = load_encoder(tmp_path / "model", device="cpu")
    view = torch.zeros((1, 1, 32, 32, 32))
    assert torch.equal(encoder.features(view)[3], again.features(view)[3])
    assert load_network(parse_model(tmp_path / "model"), device="cpu").config.backbone == "resnet3d:10"


def test_a_resnet_folder_written_when_its_stages_were_called_layers_is_read(tmp_path):
    pytest.importorskip("monai")
    encoder = load_encoder("resnet3d:10:5", device="cpu")
    state = {n.replace("encoder.stages.", "encoder.layers."): value for n, value in encoder.network.state_dict().items()}
    write_encoder(tmp_path / "encoder", encoder.config, state)
    assert load_encoder(tmp_path, device="cpu").digest == encoder.digest


@pytest.fixture
def monai_swin():
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return swin_unetr.SwinTransformer(1, 8, (4, 4, 4), (2, 2, 2), (1, 2, 1, 1), (1, 2, 2, 4)).eval()


@pytest.mark.parametrize("prefix", ["", "swinViT.", "module."])
def test_monai_weights_give_what_monai_gives(monai_swin, prefix, tmp_path):
    state = {prefix + name: value.contiguous() for name, value in monai_swin.state_dict().items()}
    save_file({**state, "encoder1.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(EncoderError, match="its preprocessing is not known"):
        load_network(parse_model(f"monai:{tmp_path / 'weights.safetensors'}"), device="cpu")
    encoder = load_network(parse_model(f"monai:{tmp_path / 'weights.safetensors'}:spacing=2:low=-1000:high=500"), device="cpu")
    assert encoder.config.shape.depths == (1, 2, 1, 1)
    assert encoder.config.shape.window == 4
    # Someone trained them: they are not called fresh, and fine-tuning spares their lower layers.
    assert not encoder.config.fresh
    assert load_network(parse_model("scratch:tiny"), device="cpu").config.fresh
    hu = torch.linspace(-1200, 700, 64**3).reshape(1, 1, 64, 64, 64)
    with torch.no_grad():
        wanted = monai_swin(((hu + 1000) / 1500).clamp(0, 1), normalize=False)[1:]
    for ours, theirs in zip(encoder.features(hu), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_weights_that_are_no_safetensors_say_how_to_convert(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(EncoderError) as error:
        load_network(parse_model(f"monai:{tmp_path / 'model.pt'}"), device="cpu")
    assert "safetensors.torch.save_file" in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"linear.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(EncoderError, match="no SwinTransformer of MONAI"):
        load_network(parse_model(f"monai:{tmp_path / 'other.safetensors'}"), device="cpu")


def test_missing_weights_are_counted_and_the_first_named(monai_swin, tmp_path):
    state = {name: value.contiguous() for name, value in monai_swin.state_dict().items()}
    del state["layers2.0.blocks.0.norm2.weight"]
    save_file(state, tmp_path / "part.safetensors", metadata={"spacing": "2", "low": "-1000", "high": "500"})
    with pytest.raises(
        EncoderError, match=r"\d+ of \d+ weights fit; 1 is missing: encoder\.swin\.layers2\.0\.blocks\.0\.norm2\.weight"
    ):
        load_network(parse_model(f"monai:{tmp_path / 'part.safetensors'}"), device="cpu")


def _ball(shape: tuple[int, int, int], radius_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * spacing
    middle = (np.array(shape) - 1) / 2 * spacing
    return np.linalg.norm(places - middle, axis=-1) <= radius_mm


def test_the_size_of_a_ball_is_its_diameter_and_volume():
    diameter, longest, volume = measure_size(_ball((41, 41, 21), 10.0, (0.6, 0.6, 1.2)), (0.6, 0.6, 1.2))
    assert diameter == pytest.approx(20.0, rel=0.02)
    assert longest == pytest.approx(20.0, abs=1.5)
    assert volume == pytest.approx(4 / 3 * np.pi, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1, 1), (12, 1, 1), (1, 12, 1), (1, 1, 12)])
def test_the_longest_axis_of_a_rod_is_its_length(shape):
    inside = np.zeros((14, 14, 14), dtype=bool)
    inside[tuple(slice(1, 1 + n) for n in shape)] = True
    longest = measure_size(inside, (2.0, 2.0, 2.0))[1]
    assert 2 * max(shape) * 0.99 <= longest <= 2 * np.linalg.norm(shape) + 1e-5


def test_a_hollow_structure_is_as_long_as_a_full_one():
    inside = _ball((21, 21, 21), 9.0, (1, 1, 1))
    shell = inside & ~_ball((21, 21, 21), 7.0, (1, 1, 1))
    assert measure_size(shell, (1, 1, 1))[1] == measure_size(inside, (1, 1, 1))[1]


def _crop(voxels: np.ndarray, inside: np.ndarray | None = None) -> ItemCrop:
    within = np.ones(voxels.shape, bool) if inside is None else inside
    return ItemCrop(voxels=voxels.astype(np.int16), inside=within, modality="CT", spacing=1.0)


def test_pixels_are_averages_of_blocks_in_the_unit_range():
    voxels = np.full((32, 32, 32), -1000)
    voxels[:2, :2, :2] = 500
    described = describe_pixels(SimpleNamespace(), _crop(voxels)).reshape(16, 16, 16)
    assert described[0, 0, 0] == 1.0
    assert described.sum() == 1.0


def test_a_histogram_is_of_the_inside_alone():
    voxels, inside = np.full((32, 32, 32), -1000), np.zeros((32, 32, 32), bool)
    inside[:4] = True
    voxels[:2] = 490
    shares = describe_histogram(SimpleNamespace(), _crop(voxels, inside))
    assert (shares[0], shares[-1], shares.sum()) == (0.5, 0.5, 1.0)


def test_a_size_needs_a_mask():
    with pytest.raises(TableError, match="has no mask"):
        describe_size(SimpleNamespace(inside=None, item=SimpleNamespace(name="a")), _crop(np.zeros((32, 32, 32))))
