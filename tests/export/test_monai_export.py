"""Proves that MONAI's SwinUNETR loads an exported encoder strictly, by the lines of its card, with dagman's features."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dagman
from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.export.forms import export_encoder

pytest.importorskip("monai", reason="needs the extra `monai`")
# MONAI warns of readers that are not installed.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("monai") / "out"
    export_encoder(encoder, "monai", out)
    return out


@pytest.mark.parametrize("sides", [(64, 64, 64), (65, 71, 66), (96, 64, 101)])
def test_the_card_loads_it_with_equal_features(folder: Path, encoder: Encoder, make_view, sides, monkeypatch: pytest.MonkeyPatch):
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code, names)
    view = make_view(*sides)
    scaled = torch.stack([names["read"].transforms[-1](one) for one in view])
    with torch.no_grad():
        theirs = names["net"].eval().swinViT(torch.as_tensor(scaled).float(), normalize=False)[1:]
    for stage, (wanted, got) in enumerate(zip(encoder.features(view), theirs, strict=True), start=1):
        gap = (wanted - got).abs().max().item()
        print(f"{sides} x{stage}: largest difference {gap:.1e} of values to {wanted.abs().max():.1f}")
        assert gap < 1e-5


def test_dagman_reads_it_back(folder: Path, encoder: Encoder, make_view, tmp_path: Path):
    back = dagman.load(f"monai:{folder / 'swinvit.safetensors'}", device="cpu")
    prepared = ("spacing", "low", "high", "view", "crop_body", "modalities", "orientation")
    assert all(getattr(back.config, name) == getattr(encoder.config, name) for name in prepared)
    view = make_view(64, 70, 66)
    for wanted, got in zip(encoder.features(view), back.features(view), strict=True):
        assert (wanted - got).abs().max() < 1e-5
    again = tmp_path / "again"
    export_encoder(back, "monai", again)
    first, second = (load_file(place / "swinvit.safetensors") for place in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_the_preprocessing_travels_with_it(folder: Path):
    values = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    assert values["spacing_mm"] == [4.0, 4.0, 4.0]
    assert values["orientation"] == "RAS"
    assert (values["intensity"]["low"], values["intensity"]["high"]) == (-900.0, 400.0)
    assert values["padding"] == {"value": -1024, "scaled": 0.0, "multiple_of": 32}
    assert "HU from -900 to 400 become 0 to 1" in (folder / "README.md").read_text(encoding="utf-8")
    with safe_open(folder / "swinvit.safetensors", framework="pt") as file:
        held = file.metadata()
    stated = {"spacing": "4", "low": "-900", "high": "400", "view": "32", "orientation": "RAS", "padding": "-1024"}
    assert stated.items() <= held.items()
    assert "HU from -900 to 400 become 0 to 1" in held["preprocessing"]


def test_what_has_no_place_there_is_refused_or_named(tmp_path: Path, encoder: Encoder):
    exported = export_encoder(encoder, "monai", tmp_path / "out")
    assert exported.left_out == ("the semantic attention",)
    with pytest.raises(EncoderError, match="Nearest: monai"):
        export_encoder(encoder, "monia", tmp_path / "form")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(EncoderError, match="not an export"):
        export_encoder(encoder, "monai", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
