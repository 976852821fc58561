"""Inputs that once failed, as the workplace keeps them in `shared/cases`: what each must end as; skipped where they are absent.

Closed forms of the same kinds, which need no folder, are in `test_dicom_geometry`, `test_names_of_series`,
`test_nifti_reading` and `test_items_in_their_scans`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dagman.errors import DagmanError, ScanError
from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan, read_series
from dagman.scans.scan import hash_scan
from dagman.tables.items import load_mask
from dagman.tables.table import read_table

_CASES = Path(__file__).parents[2].parent / "shared" / "cases"


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory):
    """Run one of the scripts; returns its folder."""

    def make(name: str) -> Path:
        if not (_CASES / f"{name}.py").is_file():
            pytest.skip("no cases here")
        folder = tmp_path_factory.mktemp(name) / name
        subprocess.run([sys.executable, _CASES / f"{name}.py", folder], check=True, capture_output=True, timeout=600)
        return folder

    return make


@pytest.fixture(scope="module")
def geometry(make_case) -> Path:
    """The folder of geometry.py."""
    return make_case("geometry")


@pytest.fixture(scope="module")
def passes(make_case) -> Path:
    """The folder of passes.py."""
    return make_case("passes")


@pytest.fixture(scope="module")
def masks(make_case) -> Path:
    """The folder of masks.py."""
    return make_case("masks")


def test_every_series_with_rounded_places_is_read_at_its_own_step(make_case):
    folders = sorted(make_case("rounded").iterdir())
    for folder in folders:
        scan = read_scan(folder)
        assert scan.shape == (64, 64, 40)
        assert scan.spacing[2] == pytest.approx(float(folder.name.split("_")[0]), abs=0.01), folder.name
    assert len(folders) == 9


@pytest.mark.parametrize("name", ["overlapping", "rounded", "falling", "thick", "scout"])
def test_what_a_hospital_calls_a_scan_is_read(geometry, name):
    truth = np.load(geometry / "truth.npy")
    voxels = read_scan(geometry / name).voxels.transpose(2, 1, 0)
    expected = truth[: len(voxels)]
    assert np.array_equal(voxels, expected[::-1] if name == "falling" else expected)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("two_gaps", "spacing changes from 2.5 to 7.5 mm after slice 13"),
        ("cone_beam", "holds 24 frames, but states only the position of the first"),
    ],
)
def test_what_is_refused_is_called_what_it_is(geometry, name, says):
    with pytest.raises(ScanError, match=re.escape(says)):
        read_scan(geometry / name)


@pytest.mark.parametrize(
    ("script", "name"), [("geometry", "two_acquisitions"), ("passes", "offset_overlap"), ("passes", "gap_between")]
)
def test_passes_in_one_series_are_volumes_with_names_that_are_read(request, script, name):
    folder = request.getfixturevalue(script) / name
    found = find_series(folder)
    assert not found.refused
    assert [one.source.partition(":")[2] for one in found.series] == ["acquisition=1", "acquisition=2"]
    with pytest.raises(ScanError, match="holds 2 series") as caught:
        read_scan(folder)
    for one in found.series:
        assert one.source in str(caught.value)
        for source in (one.source, one.files[0], one.files[-1]):
            assert hash_scan(read_scan(source)) == hash_scan(read_series(one))


@pytest.mark.parametrize(("name", "count"), [("one_slice_twice", "1 slice"), ("all_twice", "24 slices")])
def test_slices_exported_twice_count_once(passes, name, count):
    scan = read_scan(passes / name)
    assert scan.shape == (64, 64, 24)
    assert f"{count} exported twice with identical pixels; counted once" in scan.notes


@pytest.mark.parametrize("name", ["overlapping", "rounded", "falling", "thick"])
def test_a_file_means_its_series(geometry, name):
    whole = hash_scan(read_scan(geometry / name))
    assert hash_scan(read_scan(geometry / name / "000.dcm")) == whole
    (one,) = find_series(geometry / name / "000.dcm").series
    assert hash_scan(read_series(one)) == whole


def test_each_mask_lands_on_its_scan_or_is_refused_for_what_it_is(masks):
    ended = {}
    for item in read_table(masks / "table.csv").items:
        scan = read_scan(item.scan)
        try:
            ended[item.name] = load_mask(item, scan)
        except DagmanError as error:
            ended[item.name] = str(error)
    for name in ("rounded", "rounded3", "cropped", "float", "times255", "plain"):
        inside = ended[name]
        # The ball is where the scan is bright: its middle is one HU apart from muscle, its corner is not.
        values = read_scan(masks / f"{name}.nii.gz").voxels
        assert values[inside].mean() == pytest.approx(120 + 60 * (_NUMBERS[name] % 2), abs=1), name
        assert inside.shape == values.shape
    assert "spacing 1 x 1 x 1 against 0.8 x 0.8 x 2.5 mm" in ended["identity"]
    assert "is empty" in ended["empty"]
    assert "is a segmentation of 2 layers" in ended["layers"]


_NUMBERS = {
    name: number
    for number, name in enumerate(("rounded", "cropped", "float", "times255", "layers", "identity", "empty", "plain", "rounded3"))
}
