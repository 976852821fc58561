"""Proves that `dagman prepare` and `dagman store verify` do what their help says, from the command line, on mixed and bad input."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from dagman.store.manifest import Store
from dagman.store.upkeep.verification import verify_store

pytestmark = pytest.mark.journey

HELD = """
import sys
from dagman.store.writer import Progress, prepare_store

def hold(event):
    if isinstance(event, Progress) and event.done == 1:
        print("one is done", flush=True)
        sys.stdin.readline()

print(prepare_store(sys.argv[1], sys.argv[2], workers=1, on_event=hold).kept)
"""


def make_body(seed: int) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 32), indexing="ij")
    body = np.where((x / 0.7) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)[..., None]
    return np.rint(body + np.random.default_rng(seed).normal(0, 10, (40, 32, 20))).astype(np.int16)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NIfTI, NRRD and MetaImage below each other, one scan twice, and five files that cannot be used."""
    folder = tmp_path_factory.mktemp("scans")
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(make_body(0), affine), folder / "a.nii.gz")
    for number, name in ((1, "b.nrrd"), (2, "deeper/c.mha"), (2, "deeper/copy.nrrd")):
        image = SimpleITK.GetImageFromArray(make_body(number).T)
        image.SetSpacing((4.0, 4.0, 5.0))
        (folder / name).parent.mkdir(exist_ok=True)
        SimpleITK.WriteImage(image, str(folder / name))
    whole = (folder / "a.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.nii.gz").write_bytes(b"")
    (folder / "text.nii").write_text("no image")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), affine), folder / "constant.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), affine), folder / "four.nii.gz")
    return folder


def test_scans_become_a_store_that_verifies_and_goes_on(run_dagman, scans, tmp_path):
    out = tmp_path / "store"
    done = run_dagman("prepare", scans, "--out", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "series to prepare: about" in done.stdout
    assert "3 kept, 6 rejected" in done.stdout
    assert str(out) in done.stdout
    assert "same content as" in done.stdout
    assert len(Store(out)) == 3
    listed = (out / "rejected.csv").read_text().splitlines()
    assert listed[0] == "source,reason"
    assert len(listed) == 7
    assert json.loads((out / "command.json").read_text())["command"] == "prepare"

    again = run_dagman("prepare", scans, "--out", out, "--workers", 1, "--json")
    assert again.returncode == 0, again.stderr
    outcome = json.loads(again.stdout)
    assert (outcome["kept"], outcome["already"], outcome["rejected"]) == (3, 3, 6)

    assert "3 scans, all intact." in run_dagman("store", "verify", out).stdout
    first = min(out.rglob("*.b2nd"))
    first.write_bytes(first.read_bytes()[:-50])
    found = run_dagman("store", "verify", out, "--json")
    assert found.returncode == 1
    (finding,) = json.loads(found.stdout)["findings"]
    assert finding["file"] == str(first.relative_to(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "{empty}", "--out", "{out}"], "contains no scans"),
        (["prepare", "{empty}/absent", "--out", "{out}"], "does not exist"),
        (["prepare", "{scans}/constant.nii.gz", "--out", "{out}"], "the only series was rejected"),
        (["prepare", "{scans}", "--out", "{out}", "--spacing", "0"], "spacing is 0 mm"),
        (["prepare", "{scans}", "--out", "{scans}"], "exists and is not a store"),
        (["store", "verify", "{empty}"], "is not a store"),
    ],
)
def test_a_mistake_is_one_line(run_dagman, scans, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"scans": scans, "empty": tmp_path / "empty", "out": tmp_path / "store"}
    done = run_dagman(*(one.format(**places) for one in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_second_preparation_of_one_store_is_refused_and_the_first_is_whole(run_dagman, scans, tmp_path):
    out = tmp_path / "store"
    command = [sys.executable, "-c", HELD, str(scans), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "one is done\n"
        second = run_dagman("prepare", scans, "--out", out, "--workers", 1)
        said, _ = first.communicate("go on\n")
    assert second.returncode == 2
    assert second.stderr.strip() == (
        f"dagman: {out}: process {first.pid} on {platform.node()} is writing here. Wait until it ends, or choose another folder."
    )
    assert (first.returncode, said) == (0, "3\n")
    assert verify_store(Store(out)) == []
    assert not (out / "staging").exists()


def test_a_real_nifti_and_its_dicom_series_give_the_same_store(run_dagman, shared_data, tmp_path):
    series = shared_data / "chest-dicom"
    done = run_dagman("prepare", series, "--out", tmp_path / "dicom", "--workers", 1, "--json")
    assert done.returncode == 0, done.stderr
    from dagman.scans.reading import read_scan

    scan = read_scan(series)
    # The file's axes are turned and flipped on purpose: it must not matter.
    flipped = scan.affine.flip(1, scan.shape[1]).permute((2, 0, 1))
    image = nibabel.Nifti1Image(np.flip(scan.voxels, 1).transpose(2, 0, 1), flipped.matrix)
    nibabel.save(image, tmp_path / "same.nii")
    done = run_dagman("prepare", tmp_path / "same.nii", "--out", tmp_path / "nifti", "--workers", 1, "--json")
    assert done.returncode == 0, done.stderr
    (one,), (other,) = Store(tmp_path / "dicom").rows, Store(tmp_path / "nifti").rows
    assert one.id == other.id
    assert one.crop_start == other.crop_start
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-3)
    difference = Store(tmp_path / "dicom").read(one.id).voxels.astype(int) - Store(tmp_path / "nifti").read(one.id).voxels
    assert np.abs(difference).max() <= 1
