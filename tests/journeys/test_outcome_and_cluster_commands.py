"""Proves that `dagman outcome` and `dagman cluster` do what their help says from the command line, and refuse in one line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from dagman.evaluation.results import Results
from dagman.scans.phantom import write_cohort
from dagman.tasks.outcome.model import load_outcome_model

pytestmark = pytest.mark.journey


def _draw_tumour(path: Path, radius: float, seed: int) -> None:
    x, y, z = np.meshgrid(np.arange(40), np.arange(36), np.arange(24), indexing="ij")
    body = ((x - 20) / 17) ** 2 + ((y - 18) / 15) ** 2 < 1
    ball = (x - 20) ** 2 + (y - 18) ** 2 + (z - 12) ** 2 < radius**2
    voxels = np.where(ball, 80.0, np.where(body, 0.0, -1000.0)) + np.random.default_rng(seed).normal(0, 10, x.shape)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), path)
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), affine), path.with_name(f"m-{path.name}"))


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty patients, the first with two lesions: the larger the tumour, the earlier; age says a little, and lacks at times."""
    folder = tmp_path_factory.mktemp("tumours")
    random = np.random.default_rng(0)
    rows = []
    for number in range(30):
        radius = 3 + 6 * number / 29
        lived, followed = 400 * np.exp(-(radius - 6)) * random.uniform(0.5, 2), random.uniform(100, 2000)
        for lesion in range(2 if number == 0 else 1):
            name = f"s{number:02d}-{lesion}.nii.gz"
            _draw_tumour(folder / name, radius, number)
            rows.append(
                {
                    "scan": name,
                    "mask": f"m-{name}",
                    "patient": f"p{number:02d}",
                    "days": round(min(lived, followed) + 1),
                    "died": int(lived <= followed),
                    "response": "yes" if radius > 6 else "no",
                    "age": "" if number % 7 == 3 else round(50 + 3 * radius + random.normal(0, 9)),
                    "sex": "fm"[number % 2],
                }
            )
    pd.DataFrame(rows).to_csv(folder / "outcome.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def predicted(run_dagman, tumours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("outcome") / "out"
    done = run_dagman(
        *("outcome", "radiomics:size", tumours / "outcome.csv", "--time", "days", "--event", "died", "--clinical", "age,sex"),
        *("--out", out, "--folds", 3, "--repeats", 2, "--shares", "50,100"),
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_size_predicts_what_size_decides_with_an_interval(predicted):
    out, printed = predicted
    held = {(m.name, m.model, m.subset): m.interval for m in Results(out).summary.measurements}
    image = held["harrell_c", "radiomics:size", "100%"]
    assert image.low > 0.6
    assert image.patients == 30
    assert {model for _, model, _ in held} == {"radiomics:size", "clinical", "radiomics:size + clinical", "no features"}
    assert held["integrated_brier", "radiomics:size", "100%"].value < held["integrated_brier", "no features", "100%"].value
    assert "harrell c" in printed
    assert "age 4; imputed within each training set" in printed
    assert "31 items of 30 patients" in printed


def test_results_hold_splits_predictions_and_comparisons(predicted):
    results = Results(predicted[0])
    parts = results.splits.groupby(["repeat", "item"])["part"].apply(lambda p: (p == "test").sum())
    assert (parts == 1).all()
    rows = results.predictions
    assert rows["risk"].notna().all()
    assert set(rows["high_risk"]) <= {0, 1}
    survival = rows[[column for column in rows if column.startswith("survival_")]].to_numpy()
    assert (np.diff(survival, axis=1) <= 1e-9).all()
    assert {(c.first, c.second) for c in results.summary.comparisons} >= {("radiomics:size + clinical", "clinical")}


def test_the_page_shows_groups_with_their_test_and_loads_nothing(predicted):
    page = (predicted[0] / "report.html").read_text()
    for told in ("Log-rank p", "Risk groups", "Calibration", "Time-dependent AUC", "Fewer labels", "Paired differences"):
        assert told in page
    assert "://" not in page
    for number, kind in (
        (1, "most-certain-highest-risk"),
        (3, "least-certain-risk-in-the-middle"),
        (5, "most-certain-lowest-risk"),
    ):
        assert f'href="report-viewer.html#{kind}-{number}"' in page
    assert (predicted[0] / "report-viewer.html").is_file()


def test_the_kept_model_predicts_new_patients(predicted, tumours):
    from dagman.tables.table import read_table

    model = load_outcome_model(predicted[0] / "model")
    table = read_table(tumours / "outcome.csv", clinical=("age", "sex"))
    rows = model.predict(table.items)
    assert len(rows) == 30
    assert rows[-1]["risk"] > rows[0]["risk"]
    assert rows[-1]["group"] == "high risk"


def test_predicting_asks_for_what_the_model_needs_by_options_that_exist(predicted, tumours, tmp_path, call_dagman):
    bare = pd.read_csv(tumours / "outcome.csv").drop(columns=["age", "sex"])
    for column in ("scan", "mask"):
        bare[column] = [str(tumours / name) for name in bare[column]]
    scan = bare["scan"][0]
    code, _, errors = call_dagman("predict", predicted[0], scan, "--out", tmp_path / "p", "--device", "cpu")
    assert code == 2
    assert "needs the clinical columns 'age', 'sex'. Give a table with a column scan and these columns" in errors
    columns = ("--clinical", tumours / "outcome.csv")
    code, _, errors = call_dagman("predict", predicted[0], scan, *columns, "--out", tmp_path / "p", "--device", "cpu")
    assert code == 2
    assert "has no patient " in errors
    bare.rename(columns={"patient": "PatientID"}).assign(age=50, sex="f").to_csv(tmp_path / "t.csv", index=False)
    table = (tmp_path / "t.csv", "--patient", "PatientID")
    code, printed, errors = call_dagman("predict", predicted[0], *table, "--out", tmp_path / "p", "--device", "cpu")
    assert code == 0, errors
    assert "items are of scans the model was trained on" in printed


def test_equal_times_leave_measures_out_in_words_and_print_no_nan(call_dagman, tumours, tmp_path):
    table = pd.read_csv(tumours / "outcome.csv").tail(12)
    for column in ("scan", "mask"):
        table[column] = [str(tumours / name) for name in table[column]]
    table.assign(days=30, died=[0, 1] * 6).to_csv(tmp_path / "t.csv", index=False)
    code, printed, errors = call_dagman(
        *("outcome", "radiomics:size", tmp_path / "t.csv", "--time", "days", "--event", "died"),
        *("--out", tmp_path / "out", "--folds", 2, "--repeats", 1),
    )
    assert code == 0, errors
    assert "not computed: Uno's C, the time-dependent AUC, the integrated Brier score, as all times are equal (30)" in printed
    assert {m.name for m in Results(tmp_path / "out").summary.measurements} == {"harrell_c"}
    assert "nan" not in printed
    assert "not computed: Uno" in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")


def test_a_response_is_predicted_from_image_clinical_and_both(call_dagman, tumours, tmp_path):
    code, printed, errors = call_dagman(
        *("outcome", "radiomics:size", tumours / "outcome.csv", "--label", "response", "--clinical", "age"),
        *("--out", tmp_path / "out", "--folds", 3, "--repeats", 1, "--json"),
    )
    assert code == 0, errors
    told = json.loads(printed)
    areas = {row["model"]: row["interval"]["value"] for row in told["measurements"] if row["name"] == "auc"}
    assert areas["radiomics:size"] > 0.9
    assert set(areas) == {"radiomics:size", "clinical", "radiomics:size + clinical"}
    assert "ROC and reliability" in Path(told["report"]).read_text()


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({}, ("--time", "dys", "--event", "died"), "has no column 'dys'. Nearest: days"),
        ({}, ("--time", "days"), "Name both: --time COL --event COL"),
        ({}, (), "Give --label COL, or --time COL --event COL"),
        ({"days": -3}, ("--time", "days", "--event", "died"), "time 'days' is negative in row"),
        ({"died": 0}, ("--time", "days", "--event", "died"), "all items are censored"),
        ({"died": 2}, ("--time", "days", "--event", "died"), "event 'died' is not 0 or 1 in row"),
        ({"response": "no"}, ("--label", "response"), "has only one class ('no')"),
        ({}, ("--time", "days", "--event", "died", "--clinical", "agee"), "has no column 'agee'. Nearest: age"),
        ({}, ("--time", "days", "--event", "died", "--folds", 29), "fewer than 29 folds. Use --folds"),
        ({}, ("--time", "days", "--event", "died", "--method", "coks"), "unknown method 'coks'. Nearest: cox"),
    ],
)
def test_bad_input_is_one_line_with_what_to_do(call_dagman, tumours, tmp_path, change, arguments, said):
    table = pd.read_csv(tumours / "outcome.csv")
    for column in ("scan", "mask"):
        table[column] = [str(tumours / name) for name in table[column]]
    table.assign(**change).to_csv(tmp_path / "t.csv", index=False)
    code, _, errors = call_dagman("outcome", "radiomics:size", tmp_path / "t.csv", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organs")
    cohort = write_cohort(folder, patients=4, spacing=6.0, workers=1)
    rows = pd.read_csv(cohort.organs_table)[["scan", "mask", "patient"]].drop_duplicates()
    rows.to_csv(folder / "maps.csv", index=False)
    return folder


def test_organs_of_the_phantom_cluster_far_better_than_chance(run_dagman, organs, tmp_path):
    done = run_dagman(
        *("cluster", "scratch:tiny", organs / "maps.csv", "--labels", organs / "labels.csv", "--out", tmp_path / "out"),
        *("--map", "pca", "--crop-mm", 160, "--crop-spacing", 5, "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    results = Results(tmp_path / "out")
    assert len(results.summary.classes) >= 9
    held = {(m.name, m.method): m.interval for m in results.summary.measurements}
    assert held["neighbour_accuracy", "features"].value > 0.6
    assert held["ari", "kmeans"].value > 0.5
    assert held["nmi", "kmeans"].value > 0.7
    assert "neighbour accuracy" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="point"') == len(results.predictions)
    assert "background-image:url(data:image/png;base64," in page
    assert "kidney_left" in page
    assert "://" not in page


def test_structures_are_drawn_by_umap_from_a_column_of_names(run_dagman, organs, tmp_path):
    pytest.importorskip("umap")
    # Uncompiled and few: numba's compiling would take longer than all else together, and mapping takes a second for three points.
    rows = pd.read_csv(organs / "organs.csv")
    kinds = list(rows["label"].unique())[:4]
    rows[rows["label"].isin(kinds)].to_csv(organs / "few.csv", index=False)
    done = run_dagman(
        *("cluster", "histogram", organs / "few.csv", "--label", "label", "--out", tmp_path / "out", "--json"),
        *("--neighbours", 5, "--crop-mm", 160, "--crop-spacing", 5),
        NUMBA_DISABLE_JIT="1",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    held = {(row["name"], row["method"]): row["interval"]["value"] for row in told["measurements"]}
    assert held["intra_distance", "umap"] < held["inter_distance", "umap"]
    assert {"kind": "info", "text": "UMAP: 5 neighbours, minimum distance 0.1, Euclidean, seed 0"} in told["notes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--label", "labl"), "has no column 'labl'. Nearest: label"),
        (("--label", "label", "--labels", "labels.csv"), "both --label and --labels were given"),
        (("--label", "label", "--map", "umpa"), "unknown map 'umpa'. Nearest: umap"),
        (("--labels", "absent.csv"), "absent.csv: does not exist"),
    ],
)
def test_cluster_refuses_in_one_line(call_dagman, organs, tmp_path, arguments, said):
    code, _, errors = call_dagman("cluster", "histogram", organs / "organs.csv", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
