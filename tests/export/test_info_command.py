"""Proves that `dagman info` says what each kind of folder is, is made from, and expects, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dagman.encoder.encoder import Encoder
from dagman.errors import DagmanError
from dagman.export.contents import describe_path
from dagman.store.manifest import Store
from dagman.tables.structures import Structure
from dagman.tasks.segment.model import save_model, start_model
from dagman.testing import make_body, write_nifti

_MADE_BEFORE = Path(__file__).parents[1] / "made_before"


def test_an_encoder(encoder_folder: Path, encoder: Encoder):
    contents = describe_path(str(encoder_folder))
    assert contents.kind == "encoder"
    assert contents.made_of["parameters"] == sum(p.numel() for p in encoder.network.parameters())
    assert contents.made_of["digest"] == encoder.digest
    assert contents.made_from["steps"] == 7
    assert contents.contract["preprocessing"]["intensity"]["low"] == -900
    assert contents.contract["maps (channels, stride in voxels)"]["x4"] == [192, 32]
    assert any("Diagnosis" in line for line in contents.not_for)


def test_a_fresh_encoder_is_called_random():
    assert "random" in describe_path("scratch:tiny").notes[0]


def test_a_run_with_the_verdicts_of_its_monitors():
    contents = describe_path(str(_MADE_BEFORE / "run"))
    assert contents.kind == "run"
    assert contents.made_from["scans"] == 2
    assert contents.made_from["steps"] == "2 of 2"
    assert contents.notes[0].startswith("[amber] Gradient: clipped to 3 in 100% of the later steps")
    assert contents.contract["preprocessing"]["spacing_mm"] == [4.0] * 3


def test_a_store():
    contents = describe_path(str(_MADE_BEFORE / "store"))
    assert contents.kind == "store"
    assert contents.made_of["scans"] == len(Store(_MADE_BEFORE / "store"))
    assert contents.contract["spacing"] == contents.contract["preparation"]["spacing"]


def test_what_embed_wrote(call_dagman, encoder: Encoder, encoder_folder: Path, tmp_path: Path):
    scan = write_nifti(tmp_path / "scans" / "s.nii.gz", make_body())
    labels = np.zeros((44, 40, 36), np.uint8)
    labels[20:30, 15:25, 10:20] = 3
    write_nifti(tmp_path / "map.nii.gz", labels)
    encoder.embed_dense(scan, tmp_path / "dense", stages=(3,))
    contents = describe_path(str(tmp_path / "dense"))
    assert (contents.kind, contents.made_of["scans"]) == ("token grids", 1)
    assert contents.made_from["encoder_digest"] == encoder.digest
    assert contents.contract["maps (channels, stride in voxels, mm)"] == {"x3": [96, 16, encoder.config.spacing * 16]}
    asked = ("--label-map", tmp_path / "map.nii.gz", "--stages", "4", "--pools", "mean")
    for name, rows in (("f.parquet", 1), ("f.csv", 1)):
        assert call_dagman("embed", encoder_folder, scan, "--out", tmp_path / name, *asked)[0] == 0
        contents = describe_path(str(tmp_path / name))
        assert (contents.kind, contents.made_of["rows"], contents.made_of["features"]) == ("features", rows, 192)
        assert contents.made_from["encoder_digest"] == encoder.digest
        assert contents.contract["stages"] == [4]
        assert any("seen_in_pretraining" in line for line in contents.not_for)
        assert call_dagman("info", tmp_path / name)[1].startswith("features: Features of 1 label, 192 each")
    (tmp_path / "own.csv").write_text("scan\ns.nii.gz\n")
    with pytest.raises(DagmanError, match="dagman embed did not write"):
        describe_path(str(tmp_path / "own.csv"))


def test_a_model_of_a_task(encoder: Encoder, tmp_path: Path):
    model = start_model(encoder, [Structure(name="liver", values=(6,)), Structure(name="spleen", values=(1,))])
    save_model(model, tmp_path / "out" / "model")
    for place in (tmp_path / "out", tmp_path / "out" / "model"):
        contents = describe_path(str(place))
        assert contents.kind == "model"
        assert contents.what == "A model of dagman segment for liver, spleen"
        assert contents.made_of["structures"] == {"liver": [6], "spleen": [1]}


@pytest.mark.parametrize(("name", "says"), [("nowhere", "does not exist"), ("", "is not a run, an encoder folder, a store, or")])
def test_what_is_nothing_of_dagmans_is_refused(tmp_path: Path, name: str, says: str):
    with pytest.raises(DagmanError, match=says):
        describe_path(str(tmp_path / name))


def test_the_command_prints_words_and_json(call_dagman, encoder_folder: Path):
    code, printed, _ = call_dagman("info", encoder_folder)
    assert code == 0
    assert printed.startswith("encoder: tiny encoder, method dagman, 7 steps, the teacher's weights")
    assert "\nmust not be used for\n" in printed
    code, printed, _ = call_dagman("info", encoder_folder, "--json")
    assert code == 0
    assert json.loads(printed)["kind"] == "encoder"
