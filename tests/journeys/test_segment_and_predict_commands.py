"""Proves that `dagman segment` and `dagman predict` do what their help says from the command line, and refuse in one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from dagman.cli import application
from dagman.evaluation.results import Results
from dagman.tasks.segment import folds
from dagman.tasks.segment.model import load_model

pytestmark = pytest.mark.journey

FAST = ("--steps", 2, "--side", 32, "--device", "cpu")
SHAPE = (32, 30, 28)


@dataclass(frozen=True)
class Bodies:
    """A folder with table.csv, and the two layouts of a dataset.json."""

    folder: Path
    table: Path
    decathlon: Path
    nnunet: Path


def draw_body(number: int) -> tuple[np.ndarray, np.ndarray]:
    """HU X Y Z of a body at 5 mm with two lungs and a bright ball, and its labels: lungs 1 and 2, ball 3."""
    random = np.random.default_rng(number)
    x, y, z = (2 * axis / (size - 1) - 1 for axis, size in zip(np.indices(SHAPE).astype(float), SHAPE, strict=True))
    hu = np.where((x / 0.9) ** 2 + (y / 0.85) ** 2 < 1, 40.0, -1000.0)
    labels = np.zeros(SHAPE, np.uint8)
    for value, side in ((1, -0.55), (2, 0.55)):
        lung = ((x - side) / 0.22) ** 2 + (y / 0.5) ** 2 + (z / 0.9) ** 2 < 1
        hu[lung], labels[lung] = -850, value
    ball = x**2 + (y - random.uniform(-0.2, 0.2)) ** 2 + (z - random.uniform(-0.3, 0.3)) ** 2 < 0.28**2
    hu[ball], labels[ball] = 300, 3
    return np.rint(hu + random.normal(0, 10, SHAPE)).astype(np.int16), labels


def place_body(number: int) -> np.ndarray:
    """An affine at 5 mm: upright, flipped, or oblique."""
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    if number % 3 == 1:
        affine = np.diag([-5.0, -5.0, 5.0, 1.0])
    if number % 3 == 2:
        affine[:3, :3] = 5.0 * Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([-1.0, 1.0, 1.0])
    affine[:3, 3] = (-70.0, 31.5, -400.0)
    return affine


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory, write_dicom: Callable[..., list[Path]]) -> Bodies:
    """Five patients, the last one a DICOM series in the table; the layouts hold the first three."""
    folder = tmp_path_factory.mktemp("bodies")
    decathlon, nnunet = folder / "Task01_Ball", folder / "Dataset001_Ball"
    for part in ("imagesTr", "labelsTr"):
        (decathlon / part).mkdir(parents=True)
        (nnunet / part).mkdir(parents=True)
    rows, training = [], []
    for number in range(5):
        hu, labels = draw_body(number)
        affine = place_body(number)
        name = f"ct_{number}.nii.gz"
        if number == 4:
            name, affine = "series", np.diag([-5.0, -5.0, 5.0, 1.0])
            write_dicom(folder / name, hu, affine, FrameOfReferenceUID=generate_uid(), Manufacturer="none", SeriesNumber=3)
        else:
            nib.save(nib.Nifti1Image(hu, affine), folder / name)
        nib.save(nib.Nifti1Image(labels, affine), folder / f"labels_{number}.nii.gz")
        rows.append({"scan": name, "mask": f"labels_{number}.nii.gz", "patient": f"p{number}"})
        if number < 3:
            for layout, image in ((decathlon, f"ball_{number}.nii.gz"), (nnunet, f"ball_{number}_0000.nii.gz")):
                shutil.copy(folder / name, layout / "imagesTr" / image)
                shutil.copy(folder / f"labels_{number}.nii.gz", layout / "labelsTr" / f"ball_{number}.nii.gz")
            training.append({"image": f"./imagesTr/ball_{number}.nii.gz", "label": f"./labelsTr/ball_{number}.nii.gz"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    names = {"background": 0, "right lung": 1, "left lung": 2, "ball": 3}
    about = {"modality": {"0": "CT"}, "labels": {str(v): k for k, v in names.items()}, "training": training, "test": ["./x.nii.gz"]}
    (decathlon / "dataset.json").write_text(json.dumps(about))
    about = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 3, "file_ending": ".nii.gz"}
    (nnunet / "dataset.json").write_text(json.dumps(about))
    return Bodies(folder=folder, table=folder / "table.csv", decathlon=decathlon, nnunet=nnunet)


@pytest.fixture(scope="module")
def encoder(make_tiny_encoder: Callable[..., Path]) -> Path:
    """A very small encoder for CT at 5 mm."""
    return make_tiny_encoder(spacing=5.0, semantic=False)


@pytest.fixture(scope="module")
def trained(bodies: Bodies, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a segmentation of ball and lungs, few-shot, by 24 steps."""
    out = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ("segment", encoder, bodies.table, "--labels", "ball=3,lungs=1+2", "--folds", 2, "--shares", "50,100")
        patch.setattr(sys, "argv", ["dagman", *map(str, (*arguments, "--steps", 24, *FAST[2:], "--out", out))])
        with pytest.raises(SystemExit) as ended:
            application.main()
    assert not ended.value.code
    return out


def test_a_segmentation_leaves_measures_maps_pictures_and_a_model(trained, bodies):
    results = Results(trained)
    assert results.summary.classes == ("ball", "lungs")
    rows = results.predictions
    assert set(rows["label"]) == {"ball", "lungs"}
    assert set(rows["subset"]) == {"50%", "100%"}
    # Each scan is tested once in a subset and structure.
    assert (rows.groupby(["item", "subset", "label"]).size() == 1).all()
    whole = rows[(rows["subset"] == "100%") & (rows["label"] == "lungs")]
    assert whole["dice"].mean() > 0.7
    names = {one.name for one in results.summary.measurements}
    assert {"dice", "hd95_mm", "nsd"} <= names
    assert set(results.summary.extra["agreement_ml"]) == {"ball", "lungs"}
    assert {file.name for file in (trained / "examples").iterdir()} == {"best.npz", "median.npz", "worst.npz"}
    page = (trained / "report.html").read_text()
    assert "data:image/" in page
    assert [f'href="report-viewer.html#{kind}"' in page for kind in ("best", "median", "worst")] == [True] * 3
    assert (trained / "report-viewer.html").is_file()
    assert load_model(trained, device="cpu").names == {3: "ball", 1: "lungs"}
    assert len(list((trained / "predictions").glob("*.nii.gz"))) == 5


@pytest.mark.parametrize("number", [0, 1, 2])
def test_maps_lie_where_the_lungs_of_an_upright_flipped_or_oblique_scan_lie(trained, bodies, number):
    said = nib.load(trained / "predictions" / f"ct_{number}.nii.gz")
    truth = nib.load(bodies.folder / f"labels_{number}.nii.gz")
    np.testing.assert_array_equal(said.affine, truth.affine)
    lungs, drawn = np.asarray(said.dataobj) == 1, np.isin(np.asarray(truth.dataobj), (1, 2))
    assert 2 * (lungs & drawn).sum() / (lungs.sum() + drawn.sum()) > 0.6


def test_a_dicom_scan_is_answered_as_nifti_and_dicom_seg(trained, call_dagman, bodies, tmp_path):
    pytest.importorskip("highdicom")
    assert (trained / "predictions" / "series.dcm").is_file()
    code, printed, errors = call_dagman("predict", trained, bodies.folder / "series", "--out", tmp_path / "p", "--device", "cpu")
    assert code == 0, errors
    assert "1 predicted" in printed
    said = nib.load(tmp_path / "p" / "predictions" / "series.nii.gz")
    assert said.shape == SHAPE
    segments = pydicom.dcmread(tmp_path / "p" / "predictions" / "series.dcm")
    assert segments.Modality == "SEG"
    assert "DICOM SEG: not identified" in printed.splitlines()[-1]
    assert "DICOM SEG: not identified" in (trained / "report.html").read_text()
    again = call_dagman("predict", trained, bodies.folder / "series", "--out", tmp_path / "p", "--device", "cpu", "--identified")
    assert "DICOM SEG: identified, as requested" in again[1].splitlines()[-1]
    assert "PatientIdentityRemoved" not in pydicom.dcmread(tmp_path / "p" / "predictions" / "series.dcm")
    assert {one.SegmentLabel for one in segments.SegmentSequence} <= {"ball", "lungs"}
    voxels = {one.SegmentLabel: one.SegmentNumber for one in segments.SegmentSequence}
    counted = sum(
        int(frame.sum())
        for frame, about in zip(np.atleast_3d(segments.pixel_array), segments.PerFrameFunctionalGroupsSequence, strict=True)
        if about.SegmentIdentificationSequence[0].ReferencedSegmentNumber == voxels["lungs"]
    )
    assert counted == int((np.asarray(said.dataobj) == 1).sum())


def test_predict_goes_past_bad_scans_and_a_repeat_predicts_nothing_twice(trained, call_dagman, bodies, tmp_path, monkeypatch):
    folder = tmp_path / "new"
    folder.mkdir()
    hu, _ = draw_body(9)
    nib.save(nib.Nifti1Image(hu, place_body(2)), folder / "good.nii.gz")
    nib.save(nib.Nifti1Image(hu[:20, :18, :9], place_body(1)), folder / "tiny.nii.gz")
    (folder / "torn.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:3000])
    nib.save(nib.Nifti1Image(hu[:, :, 0], np.eye(4)), folder / "flat.nii.gz")
    told = call_dagman("predict", trained / "model", folder, "--out", tmp_path / "p", "--device", "cpu", "--json")
    assert told[0] == 0, told[2]
    assert (json.loads(told[1])["predicted"], json.loads(told[1])["refused"]) == (2, 2)
    refused = pd.read_csv(tmp_path / "p" / "rejected.csv")
    assert {Path(source).name for source in refused["source"]} == {"torn.nii.gz", "flat.nii.gz"}
    volumes = pd.read_csv(tmp_path / "p" / "predictions.csv")
    lungs = volumes[(volumes["item"] == "good") & (volumes["structure"] == "lungs")]["volume_ml"].item()
    said = nib.load(tmp_path / "p" / "predictions" / "good.nii.gz")
    np.testing.assert_array_equal(said.affine, nib.load(folder / "good.nii.gz").affine)
    assert lungs == pytest.approx(0.125 * (np.asarray(said.dataobj) == 1).sum(), rel=1e-4)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("predicted twice")

    monkeypatch.setattr("dagman.tasks.segment.model.SegmentationModel.label_scan", fail)
    again = call_dagman("predict", trained / "model", folder, "--out", tmp_path / "p", "--device", "cpu", "--json")
    assert again[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "p" / "predictions.csv"), volumes)


def test_mirroring_untrained_is_said_and_scans_seen_in_training_are_too(trained, call_dagman, bodies, tmp_path):
    code, printed, _ = call_dagman(
        "predict", trained, bodies.folder / "ct_0.nii.gz", "--mirror", "--out", tmp_path / "p", "--device", "cpu"
    )
    assert code == 0
    assert "was not trained on mirrored crops" in printed
    assert "1 of 1 items is of a scan the model was trained on" in printed


@pytest.mark.parametrize("layout", ["decathlon", "nnunet"])
def test_a_dataset_json_is_segmented_with_its_own_structures(call_dagman, bodies, encoder, tmp_path, layout):
    table = getattr(bodies, layout) / "dataset.json"
    code, printed, errors = call_dagman("segment", encoder, table, "--folds", 3, *FAST, "--out", tmp_path / "out", "--json")
    assert code == 0, errors
    told = json.loads(printed)
    assert any("is treated as a separate patient" in note["text"] for note in told["notes"])
    assert Results(tmp_path / "out").summary.classes == ("right lung", "left lung", "ball")
    assert set(Results(tmp_path / "out").predictions["item"]) == {"ball_0", "ball_1", "ball_2"}


def test_few_labelled_patients_of_a_given_split_with_unknown_structures(call_dagman, bodies, encoder, tmp_path):
    rows = pd.read_csv(bodies.table).head(4)
    for column in ("scan", "mask"):
        rows[column] = [str(bodies.folder / name) for name in rows[column]]
    rows["split"] = ["train", "train", "train", "test"]
    rows["contoured"] = ["1 2 3", "1;3", "1;2;3", "1;3"]
    rows.to_csv(tmp_path / "t.csv", index=False)
    labels = ("--labels", "right=1,left=2,ball=3")
    command = ("segment", encoder, "scratch:tiny", tmp_path / "t.csv", *labels, "--shots", "1,2", "--draws", 2, "--no-keep", *FAST)
    code, printed, errors = call_dagman(*command, "--spacing", 5, "--layer-decay", 0.9, "--out", tmp_path / "out", "--json")
    assert code == 0, errors
    said = json.loads(printed)
    assert any("unknown there" in note["text"] for note in said["notes"])
    assert any("layer-wise learning rate decay of 0.9 for every model" in note["text"] for note in said["notes"])
    assert {row["subset"] for row in said["comparisons"]} == {"k=1", "k=2"}
    scores = Results(tmp_path / "out").predictions
    assert set(scores["item"]) == {"ct_3"}
    assert len(scores) == 2 * 2 * 2 * 3
    unknown = scores[scores["label"] == "left"]
    assert unknown["dice"].isna().all()
    assert scores[scores["label"] != "left"]["dice"].notna().all()
    assert not (tmp_path / "out" / "model").exists()
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_killed_segmentation_goes_on_where_it_was(call_dagman, bodies, encoder, tmp_path, monkeypatch):
    fit, fitted = folds.fit_model, []

    def fit_until_killed(*arguments: object) -> object:
        fitted.append(1)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(folds, "fit_model", fit_until_killed)
    command = ("segment", encoder, bodies.decathlon, "--mask-label", 3, "--folds", 3, *FAST)
    assert call_dagman(*command, "--out", tmp_path / "out")[0] not in (0, 2)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert call_dagman(*command, "--out", tmp_path / "out")[0] == 0
    # The killed one and the two that were left, and the final model: the first fold is not trained again.
    assert len(fitted) == 2 + 2 + 1
    assert call_dagman(*command, "--out", tmp_path / "whole")[0] == 0
    left, whole = (Results(tmp_path / name).predictions for name in ("out", "whole"))
    pd.testing.assert_frame_equal(left, whole)


def _with_rows(bodies: Bodies, path: Path, **change: object) -> Path:
    """A table of the first three scans in another folder; `mask` or `scan` of the first row replaced."""
    rows = pd.read_csv(bodies.table).head(3)
    for column in ("scan", "mask"):
        rows[column] = [str(bodies.folder / name) for name in rows[column]]
    for column, value in change.items():
        rows.loc[0, column] = value
    rows.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["other grid", "empty", "flat", "other values"])
def test_a_mask_that_cannot_be_used_is_refused_by_name_and_the_others_go_on(call_dagman, bodies, encoder, tmp_path, kind):
    labels, affine = draw_body(0)[1], place_body(0)
    values, said = {
        "other grid": (labels, "grid"),
        "empty": (labels * np.uint8(0), "is empty"),
        "flat": (labels[:, :, 10], "mask.nii.gz"),
        "other values": (labels * np.uint8(20), "has no voxels of label 3 (its labels: 20, 40, 60)"),
    }[kind]
    if kind == "other grid":
        affine = affine @ np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "mask.nii.gz")
    table = _with_rows(bodies, tmp_path / "t.csv", mask=str(tmp_path / "mask.nii.gz"))
    code, _, errors = call_dagman(
        "segment", encoder, table, "--mask-label", 3, "--folds", 2, *FAST, "--out", tmp_path / "out", "--json"
    )
    assert code == 0, errors
    (row,) = pd.read_csv(tmp_path / "out" / "rejected.csv").to_dict("records")
    assert row["item"] == "ct_0"
    assert said in row["reason"]
    assert "\n" not in row["reason"]


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({"scan": "absent.nii.gz"}, (), "absent.nii.gz"),
        ({}, ("--labels", "ball=9"), "none of 3 labelled scans can be used"),
        ({}, ("--labels", "ball=3,lungs=3"), "the value 3 is assigned to two structures"),
        ({}, ("--labels", "ball"), "'ball' is not a structure"),
        ({}, ("--labels", "ball=3,bone=77"), "structure 'bone' (value 77) is in no mask"),
        ({}, ("--labels", "ball=3", "--mask-label", 3), "cannot be combined"),
        ({}, ("--side", 40), "--side is 40 voxels. Give a multiple of 32"),
        ({}, ("--steps", 0), "--steps is 0"),
        ({}, ("--folds", 9), "9"),
        ({}, ("--spacing", 0), "--spacing is 0 mm. Give between"),
        ({}, ("--tolerance", -1), "--tolerance is -1 mm"),
        ({}, ("--layer-decay", 0), "--layer-decay is 0. Give more than 0, at most 1"),
        ({}, ("--contoured", "drawn"), "has no column 'drawn'"),
        ({}, ("--shots", "9"), "9 patients per class are skipped"),
    ],
)
def test_bad_input_is_one_line_with_what_to_do(call_dagman, bodies, encoder, tmp_path, change, arguments, said):
    table = _with_rows(bodies, tmp_path / "t.csv", **change)
    folds = () if "--folds" in arguments else ("--folds", 2)
    fast = () if {"--side", "--steps"} & set(arguments) else FAST[:4]
    code, _, errors = call_dagman(
        "segment", encoder, table, *folds, *fast, "--device", "cpu", *arguments, "--out", tmp_path / "out"
    )
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("damage", ["no weights", "truncated weights", "no model", "torn description"])
def test_a_damaged_model_is_refused_in_one_line(trained, call_dagman, bodies, tmp_path, damage):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    weights = model / "decoder.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no model":
        (model / "segmentation.json").unlink()
    else:
        (model / "segmentation.json").write_text('{"format": 1')
    code, _, errors = call_dagman("predict", model, bodies.folder / "ct_0.nii.gz", "--out", tmp_path / "p", "--device", "cpu")
    assert code == 2
    assert str(tmp_path) in errors
    assert errors.count("\n") == 1


def test_results_are_not_written_over_a_file(call_dagman, bodies, encoder, tmp_path):
    (tmp_path / "notes").write_text("mine")
    code, _, errors = call_dagman("segment", encoder, bodies.table, "--folds", 2, *FAST, "--out", tmp_path / "notes")
    assert code == 2
    assert "is a file, or is inside one. Choose another folder" in errors
    assert errors.count("\n") == 1
    assert (tmp_path / "notes").read_text() == "mine"
