"""A command that can do nothing says so in one line and ends with exit code 2: never 0 with an empty result."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dagman.cli.application import main
from dagman.testing import TINY_SETTINGS, write_tiny_encoder

pytestmark = pytest.mark.journey

_SETTINGS = tuple(word for setting in TINY_SETTINGS for word in ("--set", setting))
_TIMES = ("--time", "days", "--event", "died")
_STUDY = 'title = "t"\nmethods = ["dagman"]\nseeds = [0]\nruns = {"tiny/dagman/0" = "encoder"}\n'


def call(*words: object) -> int:
    """The exit code of a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dagman", *map(str, words)])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Inputs of which nothing can be made: no scans, refused scans, no rows, rows of refused scans, a store without scans."""
    folder = tmp_path_factory.mktemp("nothing")
    for name in ("empty", "bad", "xml"):
        (folder / name).mkdir()
    (folder / "bad" / "broken.nii.gz").write_bytes(b"no scan")
    for number in range(6):
        air = np.full((8, 8, 8), -1000 - number, np.int16)
        nibabel.save(nibabel.Nifti1Image(air, np.eye(4)), folder / "bad" / f"air{number}.nii.gz")
    (folder / "xml" / "a.xml").write_text("<a/>")
    header = "scan,patient,label,days,died,mask\n"
    rows = [f"bad/air{n}.nii.gz,p{n},{'xy'[n % 2]},{10 + n},{n % 2},bad/air{n}.nii.gz\n" for n in range(6)]
    (folder / "header.csv").write_text(header)
    (folder / "refused.csv").write_text(header + "".join(rows))
    arrays = {f"{split}_images": np.zeros((0, 28, 28, 28), np.uint8) for split in ("train", "val", "test")}
    np.savez(folder / "nodulemnist3d.npz", **arrays, **{f"{split}_labels": np.zeros((0, 1)) for split in ("train", "val", "test")})
    (folder / "study.toml").write_text(_STUDY)
    write_tiny_encoder(folder / "encoder")
    assert call("prepare", folder / "bad", "--out", folder / "store", "--workers", 1, "--spacing", 4) == 2
    return folder


@pytest.mark.parametrize(
    "words",
    [
        *(("inspect", source, "--out", "out") for source in ("empty", "absent")),
        *(("prepare", source, "--workers", "1", "--out", "out") for source in ("empty", "bad", "absent")),
        *(("pretrain", source, *_SETTINGS, "--out", "out") for source in ("empty", "bad", "store")),
        *(("embed", "encoder", source, "--out", "out.csv") for source in ("empty", "bad", "store", "header.csv", "refused.csv")),
        *(("attention", "encoder", source, "--out", "out") for source in ("empty", "bad", "absent")),
        *(("classify", "pixels", f"{rows}.csv", "--label", "label", "--folds", "2") for rows in ("header", "refused")),
        *(("outcome", "pixels", f"{rows}.csv", *_TIMES, "--folds", "2") for rows in ("header", "refused")),
        *(("outcome", "pixels", f"{rows}.csv", "--label", "label", "--folds", "2") for rows in ("header", "refused")),
        *(("segment", "encoder", f"{rows}.csv", "--folds", "2", "--steps", "1") for rows in ("header", "refused")),
        *(("cluster", "pixels", f"{rows}.csv") for rows in ("header", "refused")),
        ("compare", "classify", "pixels", "radiomics:size", "refused.csv", "--label", "label", "--folds", "2"),
        *(("predict", model, "bad", "--out", "out") for model in ("empty", "encoder")),
        *(("import", "lidc", source, "--out", "out") for source in ("empty", "bad", "xml")),
        ("import", "medmnist", "nodulemnist3d.npz", "--out", "out"),
        *(("store", action, store) for action in ("verify", "list") for store in ("store", "empty")),
        ("store", "remove", "store", "P-1"),
        *(("study", "study.toml", "--out", "out", *more) for more in ((), ("--slurm",), ("--dry-run",), ("--devices", ","))),
        *(("report", source) for source in ("empty", "store")),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_command_that_can_do_nothing_ends_with_2_and_one_line(words, place, tmp_path, monkeypatch, capsys):
    for source in place.iterdir():
        os.symlink(source, tmp_path / source.name)
    monkeypatch.chdir(tmp_path)
    needs_out = words[0] in ("classify", "outcome", "segment", "cluster", "compare")
    assert call(*words, *(("--out", "out") if needs_out else ())) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("dagman: ")
    assert not list(tmp_path.glob("out*/*.html"))
