"""Proves that `dagman info` says what each kind of folder is, is made from, and expects, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagman.encoder.encoder import Encoder
from dagman.errors import DagmanError
from dagman.export.contents import describe_path
from dagman.store.manifest import Store
from dagman.tables.structures import Structure
from dagman.tasks.segment.model import save_model, start_model

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
    assert contents.notes[0].startswith("[amber] Gradient: cut to 3 in 100% of the later steps")
    assert contents.contract["preprocessing"]["spacing_mm"] == [4.0] * 3


def test_a_store():
    contents = describe_path(str(_MADE_BEFORE / "store"))
    assert contents.kind == "store"
    assert contents.made_of["scans"] == len(Store(_MADE_BEFORE / "store"))
    assert contents.contract["spacing"] == contents.contract["preparation"]["spacing"]


def test_a_model_of_a_task(encoder: Encoder, tmp_path: Path):
    model = start_model(encoder, [Structure(name="liver", values=(6,)), Structure(name="spleen", values=(1,))])
    save_model(model, tmp_path / "out" / "model")
    for place in (tmp_path / "out", tmp_path / "out" / "model"):
        contents = describe_path(str(place))
        assert contents.kind == "model"
        assert contents.what == "A model of dagman segment for liver, spleen"
        assert contents.made_of["structures"] == {"liver": [6], "spleen": [1]}


@pytest.mark.parametrize(("name", "says"), [("nowhere", "does not exist"), ("", "is not an encoder folder")])
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
