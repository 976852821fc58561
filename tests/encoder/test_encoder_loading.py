"""Proves that an encoder is loaded whole or refused by name, and that fresh weights depend on their address alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dagman
from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig, write_encoder
from dagman.encoder.loading import load_encoder
from dagman.errors import EncoderError
from dagman.settings import load_settings, resolve_settings
from dagman.training.assembly import build_networks


@pytest.fixture
def damaged(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the encoder, to be damaged."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))


def _refuse(path: str | Path) -> str:
    with pytest.raises(EncoderError) as error:
        load_encoder(path, device="cpu")
    return str(error.value)


def test_a_written_encoder_comes_back(encoder_folder: Path, encoder: Encoder, config: EncoderConfig):
    stored = load_file(encoder_folder / "model.safetensors")
    loaded = encoder.network.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)
    assert encoder.config == config
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not encoder.network.training


def test_a_run_is_loaded_by_its_encoder(encoder_folder: Path, encoder: Encoder):
    assert dagman.load(encoder_folder.parent, device="cpu").digest == encoder.digest


def test_fresh_weights_are_those_a_run_starts_from():
    settings, _ = load_settings("tiny", assignments=["seed=3"])
    student, _ = build_networks(resolve_settings(settings)[0])
    begun = student.state_dict()
    fresh = load_encoder("scratch:tiny:3", device="cpu").network.state_dict()
    assert all(torch.equal(fresh[name], begun[name]) for name in fresh)


def test_fresh_weights_depend_on_their_address_alone():
    torch.manual_seed(11)
    first = load_encoder("scratch:tiny", device="cpu")
    drawn = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(1)), "loading used the global generator"
    assert load_encoder("scratch:tiny:0", device="cpu").digest == first.digest
    assert load_encoder("scratch:tiny:1", device="cpu").digest != first.digest


def test_the_digest_covers_the_preprocessing(encoder_folder: Path, encoder: Encoder, config: EncoderConfig, tmp_path: Path):
    write_encoder(tmp_path / "other", dataclasses.replace(config, high=400.0), encoder.network.state_dict())
    assert load_encoder(tmp_path / "other", device="cpu").digest != encoder.digest


def test_missing_weights_are_named(damaged: Path):
    weights = load_file(damaged / "model.safetensors")
    total = len(weights)
    del weights["encoder.patch_projection.bias"], weights["semantic_attention.cls"]
    save_file(weights, damaged / "model.safetensors")
    text = _refuse(damaged)
    assert f"{total - 2} of {total} weights fit; 2 are missing: encoder.patch_projection.bias, semantic_attention.cls. Use" in text


def test_weights_without_a_place_or_of_another_shape_are_named(damaged: Path):
    weights = load_file(damaged / "model.safetensors")
    save_file({**weights, "encoder.spare": torch.ones(1)}, damaged / "model.safetensors")
    assert "1 has no place in it: encoder.spare." in _refuse(damaged)
    save_file({**weights, "semantic_attention.cls": torch.ones(3)}, damaged / "model.safetensors")
    assert "1 has another shape: semantic_attention.cls." in _refuse(damaged)


def test_a_truncated_file_is_one_line(damaged: Path):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    text = _refuse(damaged)
    assert text.startswith(f"{path}: is damaged")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scratch:smal", "scratch:smal: unknown size preset 'smal'. Nearest: small."),
        (
            "scratch:tiny:x",
            "scratch:tiny:x: is not a valid name of an untrained encoder. Write scratch:SIZE or scratch:SIZE:SEED, such as "
            "scratch:tiny:1.",
        ),
        ("absent", "absent: does not exist. Give a run, an encoder folder, or scratch:tiny."),
    ],
)
def test_what_is_no_encoder_is_refused(name: str, text: str):
    assert _refuse(name) == text


def test_a_run_that_wrote_no_encoder_yet_is_refused(tmp_path: Path):
    (tmp_path / "settings.toml").write_text("")
    assert _refuse(tmp_path) == f"{tmp_path}: this run has not written an encoder yet. Wait for its first checkpoint."
