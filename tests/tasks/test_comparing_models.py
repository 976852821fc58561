"""Proves that every task takes several models, that `compare` is the same command, and what is refused before anything is read."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dagman.cli.application import main
from dagman.evaluation.splits import Protocol
from dagman.store.crops import CropSpec
from dagman.tasks.finetuning import choose_finetuning

_RUNS = {
    "classify": "dagman.tasks.classify.classification.classify_items",
    "regress": "dagman.tasks.regress.regression.regress_items",
    "outcome": "dagman.tasks.outcome.time_to_event.predict_outcome",
    "cluster": "dagman.tasks.cluster.clustering.cluster_structures",
    "segment": "dagman.tasks.segment.segmentation.segment_scans",
}
_NEEDED = {"classify": ("--label", "label"), "outcome": ("--time", "days", "--event", "died"), "regress": ("--label", "days")}


class _AskedError(Exception):
    """Raised in place of a task's work, once it was asked for."""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    rows = ["scan,mask,patient,label,days,died,split,center_x_mm,center_y_mm,center_z_mm"]
    rows += [f"scan.nii.gz,{{mask}},p{number},{number % 2},{number + 1},{number % 2},train,{number + 1},2,3" for number in range(4)]
    (tmp_path / "table.csv").write_text("\n".join(rows).replace("{mask}", ""))
    (tmp_path / "masks.csv").write_text("\n".join(rows).replace("{mask}", "scan.nii.gz"))
    return tmp_path / "table.csv"


@pytest.fixture
def ask(monkeypatch, table):
    """Call the command line up to the task's own function; gives what that was asked."""

    def call(*words: str) -> dict:
        task = words[1] if words[0] == "compare" else words[0]
        place, _, name = _RUNS[task].rpartition(".")
        asked: dict = {}

        def run(models, read, out, settings, **rest):
            asked.update(models=[spec.text for spec in models], read=read, settings=settings)
            raise _AskedError

        monkeypatch.setattr(importlib.import_module(place), name, run)
        monkeypatch.setattr("sys.argv", ["dagman", *words, "--out", str(table.parent / "out")])
        with pytest.raises(_AskedError):
            main()
        return asked

    return call


@pytest.mark.parametrize("task", _RUNS)
def test_compare_is_the_task_for_several_models(task, table, ask):
    table = table.with_name("masks.csv") if task == "segment" else table
    words = (task, "scratch:tiny", "scratch:small", str(table), *_NEEDED.get(task, ()))
    alone, compared = ask(*words), ask("compare", *words)
    assert alone["models"] == compared["models"] == ["scratch:tiny", "scratch:small"]
    assert alone["settings"] == compared["settings"]


def test_clusters_are_asked_for_without_the_tables_split(table, ask):
    words = ("cluster", "pixels", "histogram", str(table), "--label", "label", "--coordinates", "lps")
    asked = ask(*words, "--crop-mm", "32", "--crop-spacing", "1", "--seed", "5")
    assert asked["read"].splits is None
    assert asked["read"].items[0].center_mm == (-1.0, -2.0, 3.0)
    assert (asked["settings"].crop, asked["settings"].seed) == (CropSpec(32.0, 1.0), 5)


def test_what_was_not_given_is_left_to_the_task(table, ask):
    asked = ask("classify", "pixels", str(table), "--label", "label", "--epochs", "3", "--folds", "2")
    assert asked["settings"] == type(asked["settings"])(folds=2, finetuning=choose_finetuning("short", epochs=3))
    assert set(asked["read"].splits) == {"train"}


@pytest.mark.parametrize(
    ("asked", "trains", "given", "wanted"),
    [(None, False, False, 5), (None, True, False, 1), (None, False, True, 1), (2, True, True, 2), (1, False, False, 1)],
)
def test_repeats_that_were_not_asked_for_are_five_where_they_are_cheap(asked, trains, given, wanted):
    assert Protocol(repeats=asked).count_repeats(trains=trains, given=given) == wanted


@pytest.mark.parametrize(("given", "wanted"), [((), (1.0,)), (("--shots", "1"), ()), (("--shots", "1", "--shares", "50"), (0.5,))])
def test_segment_leaves_the_full_training_out_where_shots_alone_are_asked_for(given, wanted, table, ask):
    assert ask("segment", "scratch:tiny", str(table.with_name("masks.csv")), *given)["settings"].shares == wanted


@pytest.mark.parametrize("name", ["--shots", "--per-class"])
def test_shots_have_two_names_and_one_meaning(name, table, ask):
    settings = ask("classify", "pixels", str(table), "--label", "label", name, "1,5")["settings"]
    assert (settings.per_class, settings.shares) == ((1, 5), (1.0,))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("classify",), "compare classify needs --label VALUE. See dagman compare classify --help."),
        (("regress",), "compare regress needs --label VALUE. See dagman compare regress --help."),
        (("classify", "--label", "label", "--steps", "5"), "compare classify has no option --steps"),
        (("cluster", "--label", "label", "--method", "linear"), "compare cluster has no option --method. See dagman"),
        (("outcome",), "needs a response, or a time and an event"),
        (("outcome", "--label", "label", "--time", "t", "--event", "e"), "needs a response, or a time and an event"),
        (("outcome", "--label", "label", "--method", "cox"), "a response is always predicted by a linear probe"),
        (("outcom",), "there is no task 'outcom'. Nearest: outcome"),
    ],
)
def test_what_a_task_does_not_know_is_refused(words, wanted, table, monkeypatch, capsys):
    task, *options = words
    arguments = ["dagman", "compare", task, "pixels", "histogram", str(table), *options, "--out", str(table.parent / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert wanted in capsys.readouterr().err
    assert not (table.parent / "out").exists()


@pytest.mark.parametrize("task", _RUNS)
def test_a_table_without_a_model_is_refused(task, table, monkeypatch, capsys):
    needed = _NEEDED.get(task, ())
    monkeypatch.setattr("sys.argv", ["dagman", task, str(table), *needed, "--out", str(table.parent / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"{task} takes a model and a table. Name a model before" in capsys.readouterr().err
