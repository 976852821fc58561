"""Proves that `dagman classify` and `dagman compare` do what their help says from the command line, and refuse in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from dagman.evaluation.results import Results
from dagman.notes import warn
from dagman.scans.reading import read_scan
from dagman.scans.scan import hash_scan
from dagman.tables.table import read_table
from dagman.tasks.head_models import load_classifier
from dagman.tasks.inputs.examples import read_examples

pytestmark = pytest.mark.journey

PATIENTS = 12
SMALL_CROPS = ("--crop-mm", 64, "--crop-spacing", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients with two lesions each at 2 mm; one class is bright and streaked. `kind` has three classes by HU."""
    folder = tmp_path_factory.mktemp("lesions")
    rows = []
    for number in range(PATIENTS):
        random = np.random.default_rng(number)
        hu = random.normal(-700, 40, (40, 36, 24))
        labels = np.zeros(hu.shape, dtype=np.uint8)
        places = np.stack(np.meshgrid(*map(np.arange, hu.shape), indexing="ij"), axis=-1)
        affine = np.diag([-2.0, 2.0, 2.0, 1.0])
        for value, center in ((1, (10, 18, 12)), (2, (29, 17, 11))):
            malignant, kind = (number + value) % 2, (number + value) % 3
            ball = ((places - center) ** 2).sum(axis=-1) < random.uniform(5, 7) ** 2
            labels[ball] = value
            streaks = np.where(places[..., 0] % 4 < 2, 150, -150) if malignant else 0
            hu = np.where(ball, -100 + 200 * kind + streaks + random.normal(0, 20, hu.shape), hu)
            rows.append(
                {
                    "scan": f"ct {number:02d}.nii.gz",
                    "mask": f"labels_{number:02d}.nii.gz",
                    "label_value": value,
                    "patient": f"p{number:02d}",
                    "malignant": "yes" if malignant else "no",
                    "kind": ("fat", "soft", "bone")[kind],
                    **dict(zip(("center_x_mm", "center_y_mm", "center_z_mm"), affine[:3, :3] @ center, strict=True)),
                    "part": "test" if number >= 9 else "val" if number >= 6 else "train",
                }
            )
        nibabel.save(nibabel.Nifti1Image(hu.astype(np.int16), affine), folder / f"ct {number:02d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / f"labels_{number:02d}.nii.gz")
    table = pd.DataFrame(rows)
    random = np.random.default_rng(0)
    table["days"] = np.where(table["malignant"] == "yes", 100, 400) + random.integers(0, 50, len(table))
    table["died"] = random.integers(0, 3, len(table)) > 0
    first = table.groupby("patient", as_index=False).first()
    first[["scan", "mask", "label_value", "patient", "days", "died", "malignant"]].to_csv(folder / "outcome.csv", index=False)
    masks = ["scan", "mask", "label_value", "patient", "malignant", "kind"]
    table[masks].to_csv(folder / "masks.csv", index=False)
    points = table.drop(columns=["mask", "label_value", "malignant"])
    points.to_parquet(folder / "points.parquet")
    whole = table.groupby("scan", as_index=False).first()[["scan", "patient", "malignant"]]
    whole.to_csv(folder / "whole.csv", index=False, sep=";", encoding="utf-8-sig")
    return folder


@pytest.fixture(scope="module")
def encoder(make_tiny_encoder: Callable[..., Path], lesions: Path) -> Path:
    """Weights whose configuration says that pretraining saw the first scan."""
    return make_tiny_encoder(spacing=2.0, scans_seen=(hash_scan(read_scan(lesions / "ct 00.nii.gz")),)).parent


@pytest.fixture(scope="module")
def monai_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        swin = swin_unetr.SwinTransformer(
            in_chans=1, embed_dim=12, window_size=(4, 4, 4), patch_size=(2, 2, 2), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
        )
    path = tmp_path_factory.mktemp("weights") / "swin.safetensors"
    state = {name: value.contiguous() for name, value in swin.state_dict().items()}
    save_file(state, path, metadata={"spacing": "2", "low": "-1000", "high": "500"})
    return path


@pytest.fixture(scope="module")
def probed(run_dagman, encoder: Path, lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`classify` by a linear probe and k-NN, on all labels and few, in a process of its own."""
    out = tmp_path_factory.mktemp("probed") / "out"
    arguments = ["classify", encoder, lesions / "masks.csv", "--label", "malignant", "--out", out, "--folds", 3, "--repeats", 2]
    arguments += ["--shares", "50,100", "--per-class", "1,2,50", "--draws", 2, *SMALL_CROPS]
    done = run_dagman(*arguments)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_texture_in_a_mask_is_read_with_intervals_over_patients(probed):
    out, printed = probed
    summary = Results(out).summary
    held = {(m.name, m.method, m.subset): m.interval for m in summary.measurements}
    assert {subset for _, _, subset in held} == {"k=1", "k=2", "50%", "100%"}
    assert {name for name, _, _ in held} == {"auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "brier"}
    area = held["auc", "linear", "100%"]
    assert area.value > 0.8
    assert area.low <= area.value <= area.high
    assert area.patients == PATIENTS
    assert held["brier", "linear", "100%"].value < 0.25
    assert "balanced accuracy" in printed
    assert "50 patients per class are skipped: in some fold a class has 8 training patients" in printed


def test_the_test_scan_that_pretraining_saw_is_named_first(probed):
    out, printed = probed
    warned = "run: 1 test scan was seen in pretraining (unlabelled), so results may be optimistic: ct 00.nii.gz"
    assert Results(out).summary.notes[0] == warn(warned)
    assert warned in printed
    assert "ct 00.nii.gz" in (out / "report.html").read_text()


def test_no_patient_is_in_two_parts_and_every_item_is_tested_once_a_repeat(probed):
    splits = Results(probed[0]).splits
    assert splits.groupby(["repeat", "fold", "patient"])["part"].nunique().max() == 1
    assert (splits[splits["part"] == "test"].groupby(["repeat", "item"]).size() == 1).all()
    rows = Results(probed[0]).predictions
    counts = rows.groupby(["method", "subset"]).size()
    # Two repeats; two draws but of all labels.
    assert counts["linear", "100%"] == 2 * 2 * PATIENTS
    assert counts["knn", "k=1"] == 2 * counts["knn", "100%"]
    assert rows["score"].between(0, 1).all()


def test_the_page_shows_curves_and_single_items_with_attention(probed):
    out, _ = probed
    page = (out / "report.html").read_text()
    for told in ("ROC and reliability", "Confusion", "Fewer labels", "Most and least certain predictions", "Notes"):
        assert told in page
    assert "://" not in page
    title, examples = read_examples(out)
    assert title == "run, linear"
    assert {example.kind.partition(",")[0] for example in examples} == {"most certain", "least certain"}
    assert all(example.attention is not None and example.attention.shape == (2, 2, 2) for example in examples)
    assert all(example.voxels.shape == example.inside.shape == (32, 32, 32) for example in examples)


def test_the_kept_probe_scores_items_alone(probed, lesions):
    classifier = load_classifier(probed[0], device="cpu")
    assert (classifier.method, classifier.classes, classifier.spec) == ("linear", ("no", "yes"), "run")
    table = read_table(lesions / "masks.csv", label="malignant")
    scored = classifier.score_items(table.items)
    assert np.mean(scored.values.argmax(axis=1) == table.codes) > 0.9


def test_a_model_of_structures_refuses_whole_scans_and_says_which_items_it_was_trained_on(probed, lesions, tmp_path, call_dagman):
    scan = next(iter(read_table(lesions / "masks.csv").items)).scan
    code, _, errors = call_dagman("predict", probed[0], scan, "--out", tmp_path / "p", "--device", "cpu")
    assert code == 2
    assert "trained on structures (masks), but 1 item was given as whole scans" in errors
    assert "Give a table with the columns scan and mask" in errors
    code, printed, errors = call_dagman("predict", probed[0], lesions / "masks.csv", "--out", tmp_path / "p", "--device", "cpu")
    assert code == 0, errors
    assert "items are of scans the model was trained on" in printed


def test_the_same_command_repeated_computes_nothing_again(probed, encoder, lesions, call_dagman):
    out, _ = probed
    before, journal = (out / "metrics.json").read_bytes(), (out / "scores.jsonl").read_bytes()
    code, printed, errors = call_dagman(
        *("classify", encoder, lesions / "masks.csv", "--label", "malignant", "--out", out, "--folds", 3, "--repeats", 2),
        *("--shares", "50,100", "--per-class", "1,2,50", "--draws", 2, "--json", *SMALL_CROPS),
    )
    assert code == 0, errors
    assert json.loads(printed)["task"] == "classify"
    assert (out / "scores.jsonl").read_bytes() == journal
    assert (out / "metrics.json").read_bytes() == before


def test_three_classes_at_points_are_fine_tuned_on_the_tables_own_split(encoder, lesions, tmp_path, call_dagman):
    code, printed, errors = call_dagman(
        *("classify", encoder, lesions / "points.parquet", "--label", "kind", "--split", "part", "--method", "finetune,linear"),
        *("--epochs", 2, "--out", tmp_path / "out", *SMALL_CROPS),
    )
    assert code == 0, errors
    assert "the table's own split is used, without cross-validation" in printed
    results = Results(tmp_path / "out")
    held = {(m.name, m.method): m.interval.value for m in results.summary.measurements}
    assert {name for name, _ in held} == {"auc", "accuracy", "balanced_accuracy", "brier"}
    assert held["auc", "finetune"] > 0.7
    assert set(results.splits["part"]) == {"train", "val", "test"}
    rows = results.predictions
    assert set(rows["patient"]) == {"p09", "p10", "p11"}
    assert np.allclose(rows[["score_bone", "score_fat", "score_soft"]].sum(axis=1), 1)
    assert np.array(results.summary.extra["curves"][0]["confusion"]).sum() == 6
    classifier = load_classifier(tmp_path / "out" / "model", device="cpu")
    assert classifier.method == "finetune"
    # What was scored is what is kept: of a given split all training items are those of its one part.
    tested = [item for item in read_table(lesions / "points.parquet", label="kind", split="part").items if item.split == "test"]
    scored = rows[rows["method"] == "finetune"].set_index("item").loc[[item.name for item in tested]]
    wanted = scored[["score_bone", "score_fat", "score_soft"]].to_numpy()
    np.testing.assert_allclose(classifier.score_items(tested).values, wanted, atol=1e-5)
    assert "Confusion matrix of" in (tmp_path / "out" / "report.html").read_text()


def test_whole_scans_are_classified_from_a_semicolon_table(encoder, lesions, tmp_path, call_dagman):
    code, printed, errors = call_dagman(
        *("classify", encoder, lesions / "whole.csv", "--label", "malignant", "--method", "linear,finetune", "--folds", 2),
        *("--epochs", 1, "--out", tmp_path / "out", "--device", "cpu", "--json"),
    )
    assert code == 0, errors
    told = json.loads(printed)
    assert {row["method"] for row in told["measurements"]} == {"linear", "finetune"}
    assert told["extra"]["counts"] == {"no": 6, "yes": 6}


def test_labels_dealt_anew_are_chance_by_every_method(encoder, lesions, tmp_path, call_dagman):
    table = pd.read_csv(lesions / "masks.csv")
    # One label a patient: whatever tells patients apart would give it away if one were in two folds.
    dealt = np.random.default_rng(1).permutation(["yes", "no"] * (PATIENTS // 2))
    table["malignant"] = [dealt[int(name[1:])] for name in table["patient"]]
    table.to_csv(lesions / "dealt.csv", index=False)
    code, printed, errors = call_dagman(
        *("classify", encoder, lesions / "dealt.csv", "--label", "malignant", "--method", "linear,knn,finetune", "--epochs", 2),
        *("--folds", 3, "--out", tmp_path / "out", "--json", *SMALL_CROPS),
    )
    assert code == 0, errors
    areas = {row["method"]: row["interval"] for row in json.loads(printed)["measurements"] if row["name"] == "auc"}
    assert set(areas) == {"linear", "knn", "finetune"}
    # Twelve patients say little; a leak would give nearly 1.
    assert all(area["value"] < 0.8 for area in areas.values())
    assert all(area["low"] < 0.5 for area in areas.values())


def test_models_are_compared_on_identical_splits(encoder, lesions, monai_weights, tmp_path, call_dagman):
    models = [encoder, "scratch:tiny", f"monai:{monai_weights}", "resnet3d:10", "radiomics:size", "pixels"]
    code, printed, errors = call_dagman(
        *("compare", "classify", *models, lesions / "masks.csv", "--label", "malignant", "--method", "linear"),
        *("--folds", 3, "--repeats", 1, "--shares", "50,100", "--primary", "second=pixels"),
        *("--out", tmp_path / "out", *SMALL_CROPS),
    )
    assert code == 0, errors
    names = ["run", "scratch:tiny", "monai:swin.safetensors", "resnet3d:10", "radiomics:size", "pixels"]
    results = Results(tmp_path / "out")
    rows = results.predictions
    assert list(rows["model"].unique()) == names
    tested = rows.groupby("model")[["item", "repeat", "fold", "draw", "subset"]].apply(lambda part: part.to_numpy().tolist())
    assert all(part == tested.iloc[0] for part in tested)
    assert all((one.first, one.method) == ("run", "linear") for one in results.summary.comparisons)
    # Five others, two subsets, AUC and balanced accuracy.
    assert len(results.summary.comparisons) == 20
    assert all(one.corrected >= one.difference.p for one in results.summary.comparisons)
    first, *others = results.summary.comparisons
    assert (first.primary, first.second, first.name, first.subset) == (True, "pixels", "auc", "100%")
    assert first.corrected == first.difference.p
    assert not any(one.primary for one in others)
    assert "The primary endpoint is tested alone; p (Holm) of the 19 others is corrected" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "radiomics:size" in page
    assert "Primary endpoint" in page
    assert "data:image/png" in page
    assert not (tmp_path / "out" / "model").exists()


def test_networks_alone_are_fine_tuned_and_the_others_are_said(encoder, lesions, monai_weights, tmp_path, call_dagman):
    code, printed, errors = call_dagman(
        *("compare", "classify", encoder, "resnet3d:10", f"monai:{monai_weights}", "pixels", lesions / "masks.csv"),
        *("--label", "malignant", "--method", "finetune", "--epochs", 1, "--folds", 2, "--out", tmp_path / "out", *SMALL_CROPS),
    )
    assert code == 0, errors
    assert "not fine-tuned, as they have no weights: pixels" in printed
    assert set(Results(tmp_path / "out").predictions["model"]) == {"run", "resnet3d:10", "monai:swin.safetensors"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--label", "malignant", "--repeats", 1), "paired comparisons; p (Holm) is corrected for multiple testing"),
        (("--time", "days", "--event", "died", "--repeats", 1), "1 paired comparison: p (Holm) is p"),
    ],
)
def test_outcomes_are_compared_between_models(options, told, encoder, lesions, tmp_path, call_dagman):
    code, printed, errors = call_dagman(
        *("compare", "outcome", encoder, "radiomics:size", lesions / "outcome.csv", *options, "--folds", 2),
        *("--out", tmp_path / "out", *SMALL_CROPS),
    )
    assert code == 0, errors
    summary = Results(tmp_path / "out").summary
    assert {"run", "radiomics:size"} <= {m.model for m in summary.measurements}
    assert ("run", "radiomics:size") in {(c.first, c.second) for c in summary.comparisons}
    assert told in printed


def test_segmentations_are_compared_between_models(encoder, lesions, tmp_path, call_dagman):
    # Another fresh network would be larger, and slower.
    shutil.copytree(encoder, tmp_path / "other")
    code, _, errors = call_dagman(
        *(
            "compare",
            "segment",
            encoder,
            tmp_path / "other",
            lesions / "outcome.csv",
            "--mask-label",
            1,
            "--steps",
            1,
            "--folds",
            2,
        ),
        *("--out", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0, errors
    assert {m.model for m in Results(tmp_path / "out").summary.measurements} == {"run", "other"}
    (difference,) = Results(tmp_path / "out").summary.comparisons
    assert (difference.first, difference.second) == ("run", "other")
