"""Proves that transformers, without dagman, gives dagman's features of a raw scan; and that no connection is opened unasked."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import dagman
from dagman.encoder import hub
from dagman.encoder.embedding import map_scan
from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.evaluation.results import Results
from dagman.export.forms import export_encoder
from dagman.export.huggingface.folder import from_pretrained, push_to_hub, save_pretrained
from dagman.export.preprocessing import describe_preprocessing
from dagman.testing import make_body, write_nifti

pytest.importorskip("transformers", reason="needs the extra `hub`")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

_CODE = """
import sys
sys.modules["dagman"] = None  # an import of it fails
import numpy, torch
from transformers import AutoImageProcessor, AutoModel
scan, *folders = sys.argv[1:]
for folder in folders:
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = processor(scan)
    with torch.no_grad():
        given = model(inputs["pixel_values"])
    values = {f"x{n}": x[0].numpy() for n, x in enumerate(given.feature_maps, start=1)}
    if given.attentions is not None:
        values["attention"] = given.attentions[0][0].numpy()
    numpy.savez(folder + ".npz", affine=inputs["affine"][0].numpy(), **values)
    model.save_pretrained(folder + "-again")
"""


@pytest.fixture(scope="module")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "out"
    save_pretrained(encoder, out)
    return out


@pytest.fixture(scope="module")
def cnn(make_encoder, folder: Path) -> tuple[Encoder, Path]:
    """A CNN with its folder: CT-FM's, which turns axes on the way; skips without its library."""
    encoder, out = make_encoder("segresnet:8"), folder.with_name("cnn")
    save_pretrained(encoder, out)
    return encoder, out


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uneven voxels, finer and coarser than the encoder's, with the axes in another order."""
    voxels = make_body((40, 50, 30), seed=4)
    affine = np.array([[0, 0, 5.0, -70], [-3.1, 0, 0, 60], [0, 3.7, 0, -90], [0, 0, 0, 1]])
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_nifti(path, voxels, affine)
    return path


@pytest.fixture(scope="module")
def given(folder: Path, scan: Path, tmp_path_factory: pytest.TempPathFactory, request) -> tuple[dict[str, np.ndarray], Path]:
    """What transformers makes of the scan, and the folder that it saved again; of the CNN, too, where it can be built."""
    place = tmp_path_factory.mktemp("given")
    folders = [folder, *([request.getfixturevalue("cnn")[1]] if importlib.util.find_spec("monai") else [])]
    (place / "run.py").write_text(_CODE, encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(place / "home"), "PYTHONPATH": os.environ["PYTHONPATH"].split(os.pathsep)[0]}
    command = [sys.executable, place / "run.py", scan, *folders]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return dict(np.load(folder.with_name("out.npz"))), folder.with_name("out-again")


def test_features_of_a_raw_scan_equal_dagmans_own(given, encoder: Encoder, scan: Path):
    values, _ = given
    wanted = map_scan(encoder, scan)
    for stage, features in zip(wanted.stages, wanted.maps, strict=True):
        np.testing.assert_allclose(values[f"x{stage}"], features.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(wanted.affines[0].crop([-3 / 8] * 3).matrix[:3, 3], values["affine"][:3, 3], atol=1e-9)


def test_features_that_a_cnn_gives_of_a_raw_scan_equal_dagmans_own(cnn: tuple[Encoder, Path], given, scan: Path):
    encoder, out = cnn
    values, wanted = dict(np.load(out.with_name("cnn.npz"))), map_scan(encoder, scan)
    assert wanted.stages == (1, 2, 3, 4)
    for stage, features in zip(wanted.stages, wanted.maps, strict=True):
        np.testing.assert_allclose(values[f"x{stage}"], features.numpy(), rtol=0, atol=1e-5)
    assert "attention" not in values
    assert from_pretrained(out.with_name("cnn-again"), device="cpu").digest == encoder.digest


def test_attention_is_there_too(given):
    attention = given[0]["attention"]
    np.testing.assert_allclose(attention.sum(axis=(1, 2, 3)) <= 1, True)
    assert attention.shape[0] == 2


def test_the_folder_is_an_encoder_folder_also_after_transformers_saved_it(given, folder: Path, encoder: Encoder):
    for place in (folder, given[1]):
        back = from_pretrained(place, device="cpu")
        assert back.digest == encoder.digest
        assert back.config == encoder.config


def test_the_card_states_licence_and_limits(folder: Path):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    for needed in ("license: unknown", "trust_remote_code=True", "## Out-of-scope use", "## Preprocessing"):
        assert needed in card


@pytest.mark.parametrize("form", ["monai", "nnunet", "hf"])
def test_every_form_carries_the_preprocessing_and_a_sentence(form: str, encoder: Encoder, tmp_path: Path):
    export_encoder(encoder, form, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "preprocessing.json").read_text(encoding="utf-8"))
    assert values == describe_preprocessing(encoder)
    for needed in ("spacing_mm", "orientation", "intensity", "padding"):
        assert needed in values
    sentence = values["sentence"]
    assert sentence in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    with safe_open(weights, framework="pt") as file:
        assert file.metadata()["preprocessing"] == sentence


def test_the_code_beside_the_weights_imports_nothing_of_dagman(folder: Path):
    for path in folder.glob("*.py"):
        assert "import dagman" not in path.read_text(encoding="utf-8")
        assert "from dagman" not in path.read_text(encoding="utf-8")


def test_what_is_not_in_the_cache_is_refused_without_a_connection(monkeypatch: pytest.MonkeyPatch, encoder: Encoder):
    monkeypatch.delenv(hub.VARIABLE, raising=False)
    with pytest.raises(EncoderError, match="makes no connection unless DAGMAN_ONLINE=1"):
        dagman.load("hub:nobody/nothing", device="cpu")
    with pytest.raises(EncoderError, match="makes no connection unless DAGMAN_ONLINE=1"):
        push_to_hub(encoder, "nobody/nothing")
    with pytest.raises(EncoderError, match="Write hub:OWNER/NAME"):
        dagman.load("hub:../../etc", device="cpu")


def test_an_encoder_in_the_cache_is_read_from_there(
    folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub.constants

    monkeypatch.delenv(hub.VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    held = tmp_path / "models--someone--ct"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, held / "snapshots" / ("a" * 40))
    assert dagman.load("hub:someone/ct", device="cpu").digest == encoder.digest


def test_a_folder_with_foreign_values_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "other")
    values = json.loads((tmp_path / "other" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 768}))
    with pytest.raises(EncoderError):
        dagman.load(tmp_path / "other", device="cpu")
    (tmp_path / "other" / "config.json").write_text(json.dumps(values))
    (tmp_path / "other" / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(EncoderError, match="is damaged"):
        dagman.load(tmp_path / "other", device="cpu")


def test_the_card_of_a_run_is_filled_from_it(tmp_path: Path):
    """Data, method, preprocessing, verdicts and results with intervals; and nothing of the machine that trained it."""
    made_before = Path(__file__).parents[1] / "made_before"
    encoder = dagman.load(made_before / "run", device="cpu")
    results = Results(made_before / "results")
    export_encoder(encoder, "hf", tmp_path / "out", results=[results])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in card.split("\n## ")[1:])
    assert "- scans: 2\n" in parts["Data"]
    assert "The loss was 1 AMIP + 0.1 AMPD + 0.1 AITD + 0.1 GITD." in parts["Method"]
    assert "is resampled to 4 mm" in parts["Preprocessing"]
    assert "[amber] Gradient" in parts["Monitors at the end of pretraining"]
    rows = [line for line in parts["Results"].splitlines() if line.startswith(f"| {results.summary.task} |")]
    assert len(rows) == len(results.summary.measurements)
    assert all(" to " in row or "all bootstrap resamples give the same value" in row for row in rows)
    assert "To be set by whoever publishes" in parts["Licence"]
    assert "Diagnosis, treatment" in parts["Out-of-scope use"]
    assert "- store:" not in card
    assert not re.search(r"\bnan\b", card)
