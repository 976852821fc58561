"""`dagman study`: one file becomes commands, one page and one CSV; a repeated study continues; mistakes are one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student_t

from dagman.errors import SettingsError
from dagman.scans.phantom import write_cohort
from dagman.store.writer import prepare_store
from dagman.study.plan import Study, list_jobs, list_studies, read_study
from dagman.study.tables import pair_by_seed

_TINY = (
    "view.side=32, view.spacing=6, model.embed=8, model.depths=[1, 1, 1, 1], model.heads=[1, 2, 2, 4], model.sa_heads=2, "
    "projector.hidden=16, projector.bottleneck=8, projector.prototypes=16, train.steps=2, train.monitor_views=2, train.device=cpu"
)
STUDY = """
title = "A small study"
store = "store"
methods = ["dagman", "simmim"]
seeds = [0, 1]
set = [{settings}]

[[monitors]]
name = "Reconstruction"
path = "reconstruction.ratio"

[[tasks]]
name = "Kind of lesion"
task = "classify"
table = "cohort/nodules.csv"
measure = "auc"
method = "linear"
options = {{ label = "label", method = "linear", folds = 2, repeats = 1, device = "cpu", crop_mm = 22.4, crop_spacing = 0.7 }}

[primary]
of = "Kind of lesion"
first = "dagman"
second = "scratch"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("study")
    write_cohort(place / "cohort", patients=6, seed=0, spacing=6.0)
    prepare_store([place / "cohort" / "scans"], place / "store", workers=1)
    parts = [part.strip() for part in _TINY.replace("[1, 1, 1, 1]", "[1;1;1;1]").replace("[1, 2, 2, 4]", "[1;2;2;4]").split(",")]
    settings = ", ".join(f'"{part.replace(";", ", ")}"' for part in parts if not part.startswith("view.spacing"))
    (place / "study.toml").write_text(STUDY.format(settings=settings))
    return place


@pytest.fixture
def forked_jobs(run_dagman, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a study are processes forked with their libraries loaded; in the test of a failed job they are started anew."""
    start = subprocess.run

    def run(command: list[str], **options):
        plain = command[:3] == [sys.executable, "-m", "dagman"]
        return run_dagman(*command[3:], **options["env"]) if plain else start(command, **options)

    monkeypatch.setattr("dagman.study.execution.subprocess.run", run)


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.usefixtures("forked_jobs")
def test_a_study_runs_every_command_pairs_by_seed_and_continues(folder, tmp_path, call_dagman):
    out = tmp_path / "out"
    command = ("study", folder / "study.toml", "--out", out)
    planned = call_dagman(*command, "--dry-run")[1].splitlines()
    assert len(planned) == 4 + 2
    assert all(line.startswith("dagman ") for line in planned)
    code, printed, errors = call_dagman(*command, "--json")
    assert code == 0, errors
    differences = json.loads(printed)["differences"]
    assert differences[0]["primary"]
    assert (differences[0]["first"], differences[0]["second"], differences[0]["over"]) == ("dagman", "scratch", "2 seeds")
    assert not any(row["primary"] for row in differences[1:])
    page = (out / "report.html").read_text()
    assert "Primary endpoint" in page
    assert {"arm", "seed", "value"} <= set((out / "study.csv").read_text().splitlines()[0].split(","))
    before = (out / "jobs.jsonl").read_text()
    assert before.count("\n") == 6
    code, printed, errors = call_dagman(*command)
    assert code == 0, errors
    assert printed.count("skipped") == 6
    assert (out / "jobs.jsonl").read_text() == before
    assert call_dagman(*command, "--dry-run")[1] == ""


@pytest.mark.journey
def test_a_job_that_fails_is_named_with_its_command_and_costs_no_other(folder, tmp_path, call_dagman):
    text = (folder / "study.toml").read_text().replace("cohort/nodules.csv", "cohort/absent.csv")
    text = text.replace('methods = ["dagman", "simmim"]', 'methods = ["simmim"]').replace("seeds = [0, 1]", "seeds = [0]")
    text = text.replace('first = "dagman"', 'first = "simmim"')
    (folder / "broken.toml").write_text(text)
    code, _, errors = call_dagman("study", folder / "broken.toml", "--out", tmp_path / "out")
    assert code == 2
    assert "1 job of the study failed, kind-of-lesion-tiny-0 first" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "out" / "runs" / "tiny-simmim-0" / "encoder").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["dagmann"]}, "'dagmann' is not a preset"),
        (
            {"primary": {"of": "Reconstructio", "first": "dagman", "second": "simmim"}},
            "there is no task or monitor 'Reconstructio'",
        ),
        ({"primary": {"of": "Reconstruction", "first": "dagman", "second": "fresh"}}, "'fresh' is neither a method nor a baseline"),
        ({"seed": [1]}, "seed: unknown key. Nearest: seeds"),
        ({"seeds": ["one"]}, "seeds.0 = 'one': should be a whole number"),
        ({"monitors": [{"name": "Reconstruction"}]}, "monitors.0.path is missing"),
    ],
)
def test_a_mistake_in_a_study_is_named_before_any_work(tmp_path, change, message):
    import tomli_w

    values = {
        "title": "t",
        "methods": ["dagman", "simmim"],
        "monitors": [{"name": "Reconstruction", "path": "reconstruction.ratio"}],
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values | change))
    with pytest.raises(SettingsError, match=message):
        read_study(tmp_path / "study.toml")


def test_an_unknown_study_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match="Give a TOML file, or one of claims, paper"):
        read_study("clames")


@pytest.mark.parametrize("name", list_studies())
def test_the_built_in_studies_are_whole(name, tmp_path):
    study = read_study(name)
    jobs = list_jobs(study, tmp_path, tmp_path / "out")
    trained = len(study.methods) * len(study.sizes) * len(study.seeds)
    assert [job.kind for job in jobs].count("pretrain") == trained
    assert [job.kind for job in jobs].count("task") == len(study.tasks) * len(study.sizes) * len(study.seeds)
    assert study.primary is not None
    assert len({job.folder for job in jobs}) == len(jobs)


def test_runs_that_are_there_are_taken_and_the_primary_arm_is_compared_first(tmp_path):
    study = Study.model_validate(
        {
            "title": "t",
            "methods": ["simmim", "dagman"],
            "seeds": [3],
            "runs": {"tiny/dagman/3": "old/run"},
            "weights": "student",
            "tasks": [
                {"name": "a", "task": "classify", "table": "t.csv", "measure": "auc", "options": {"shots": [1, 5], "mirror": True}}
            ],
            "primary": {"of": "a", "first": "dagman", "second": "scratch"},
        }
    )
    jobs = list_jobs(study, tmp_path, tmp_path / "out")
    assert [job.name for job in jobs] == ["tiny-simmim-3", "a-tiny-3"]
    words = list(jobs[1].words)
    assert words[:4] == [
        "classify",
        str(tmp_path / "old" / "run"),
        str(tmp_path / "out" / "runs" / "tiny-simmim-3"),
        "scratch:tiny:3",
    ]
    assert words[-5:] == ["--weights", "student", "--shots", "1,5", "--mirror"]


def test_differences_are_paired_by_seed_with_a_t_interval():
    first, second = {0: 0.8, 1: 0.9, 2: 0.7, 7: 0.1}, {0: 0.7, 1: 0.85, 2: 0.68, 8: 0.3}
    value, low, high, p = pair_by_seed(first, second)
    d = np.array([0.1, 0.05, 0.02])
    half = student_t.ppf(0.975, 2) * d.std(ddof=1) / math.sqrt(3)
    assert (value, low, high) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert p == pytest.approx(2 * student_t.sf(d.mean() / (d.std(ddof=1) / math.sqrt(3)), 2))
    assert pair_by_seed({0: 1.0}, {0: 0.5})[0] == 0.5
    assert math.isnan(pair_by_seed({0: 1.0}, {1: 0.5})[0])
