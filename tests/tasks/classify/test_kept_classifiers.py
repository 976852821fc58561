"""Proves that a classifier is a folder that gives the same probabilities when read again, and that a damaged one is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dagman.errors import TaskError
from dagman.store.crops import CropSpec
from dagman.tables.table import read_table
from dagman.tasks.finetuning import pool_crops
from dagman.tasks.head_models import Classifier, load_classifier, make_head, save_classifier, to_probabilities
from dagman.tasks.inputs.features import extract_features
from dagman.tasks.inputs.item_crops import cut_items
from dagman.tasks.models import parse_model
from dagman.tasks.probes import fit_linear_probe

_PATIENTS = np.array(list("aabbccddee"))


def _fit(classes: int, width: int = 4):
    random = np.random.default_rng(0)
    labels = np.arange(10) % classes
    return fit_linear_probe(random.normal(size=(10, width)) + labels[:, None], labels, _PATIENTS)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_gives_its_probes_probabilities(classes):
    probe = _fit(classes)
    head = make_head(probe)
    features = np.random.default_rng(1).normal(size=(6, 4))
    assert head.weights.shape == (classes, 4)
    outputs = (features - head.mean) / head.scale @ head.weights.T + head.bias
    np.testing.assert_allclose(to_probabilities(outputs), probe.score(features), atol=1e-5)


def test_large_outputs_are_probabilities_too():
    np.testing.assert_allclose(to_probabilities(np.array([[1000.0, 0.0], [-1000.0, -1000.0]])), [[1, 0], [0.5, 0.5]])


def test_a_baseline_is_kept_without_weights_and_scores_a_table(ball_cohort, tmp_path):
    table = read_table(ball_cohort / "table.csv")
    probe = _fit(2, width=extract_features(parse_model("radiomics:size"), table).values.shape[1])
    kept = Classifier(classes=("no", "yes"), method="linear", spec="radiomics:size", encoder=None, head=make_head(probe))
    save_classifier(kept, tmp_path / "out" / "model")
    assert sorted(path.name for path in (tmp_path / "out" / "model").iterdir()) == ["classifier.json", "head.safetensors"]
    again = load_classifier(tmp_path / "out")
    np.testing.assert_array_equal(again.score_items(table.items).values, kept.score_items(table.items).values)
    assert again.classes == ("no", "yes")


def test_a_tuned_encoder_is_kept_with_its_head_and_its_crops(small_encoder, ball_cohort, tmp_path):
    table = read_table(ball_cohort / "table.csv")
    crops = cut_items(small_encoder.reader, table.items, crop=CropSpec(160, 5))
    probe = _fit(2, width=pool_crops(small_encoder, crops.crops[:1]).shape[1])
    kept = Classifier(
        classes=("no", "yes"),
        method="finetune",
        spec="encoder",
        encoder=small_encoder,
        head=make_head(probe),
        crop=CropSpec(160.0, 5.0),
    )
    save_classifier(kept, tmp_path / "model")
    again = load_classifier(tmp_path / "model", device="cpu")
    wanted = to_probabilities(
        (pool_crops(small_encoder, crops.crops) - probe.mean) / probe.scale @ kept.head.weights.T + kept.head.bias
    )
    np.testing.assert_allclose(again.score_items(table.items).values, wanted, atol=1e-5)
    with pytest.raises(TaskError, match="there are no items"):
        again.score_items([])


def _damage(folder: Path, name: str, text: str | None) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("classifier.json", None, "holds no classifier"),
        ("classifier.json", "{", "classifier.json is damaged"),
        ("classifier.json", json.dumps({"format": 0}), "has another format"),
        ("head.safetensors", None, "head.safetensors is damaged or missing"),
        ("head.safetensors", "no tensors", "head.safetensors is damaged or missing"),
    ],
)
def test_a_damaged_folder_is_said_in_one_line(tmp_path, name, text, said):
    kept = Classifier(classes=("no", "yes"), method="linear", spec="pixels", encoder=None, head=make_head(_fit(2)))
    save_classifier(kept, tmp_path / "model")
    _damage(tmp_path / "model", name, text)
    with pytest.raises(TaskError) as error:
        load_classifier(tmp_path / "model")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
