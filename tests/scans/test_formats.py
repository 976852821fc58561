"""A format of one's own: one entry, and it is found, read, estimated, inspected and prepared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dagman.cli.scans.inspect import app as inspect_app
from dagman.errors import ScanError
from dagman.scans.affine import Affine
from dagman.scans.discovery import Series, find_series
from dagman.scans.formats import FORMATS, Format, find_format, register_format
from dagman.scans.reading import read_scan
from dagman.scans.scan import RawImage
from dagman.store.manifest import Store
from dagman.store.writer import prepare_store


def check(path: Path) -> None:
    if not path.read_bytes().startswith(b"\x93NUMPY"):
        raise ScanError("is not a NumPy file", where=path, do="Exclude it")


def read(series: Series) -> RawImage:
    return RawImage(np.load(series.files[0]), Affine(np.diag([2.0, 2, 2, 1])))


@pytest.fixture
def numpy_format() -> Iterator[Format]:
    new = Format(
        name="numpy",
        title="NumPy",
        suffixes=(".npy",),
        check=check,
        read=read,
        measure=lambda series: (np.load(series.files[0], mmap_mode="r").shape, (2.0, 2.0, 2.0)),
    )
    yield register_format(new)
    del FORMATS["numpy"]


def test_a_format_of_ones_own_goes_through_inspect_and_prepare(tmp_path, ct, numpy_format):
    np.save(tmp_path / "a.npy", ct)
    (tmp_path / "b.npy").write_bytes(b"something else")
    shown = CliRunner().invoke(inspect_app, [str(tmp_path), "--json", "--workers", "1"])
    rows = {Path(row["source"]).name: row for row in json.loads(shown.stdout)["series"]}
    assert rows["a.npy"]["accepted"]
    assert rows["a.npy"]["kind"] == "numpy"
    assert rows["b.npy"]["reason"] == "is not a NumPy file: exclude it"
    assert np.array_equal(read_scan(tmp_path / "a.npy").voxels, ct)
    events = []
    summary = prepare_store(tmp_path, tmp_path / "store", workers=1, on_event=events.append)
    assert (summary.kept, summary.rejected) == (1, 1)
    assert events[0].bytes > 0
    assert len(Store(tmp_path / "store").rows) == 1


def test_what_a_format_of_ones_own_raises_costs_its_file_alone(tmp_path, ct, write_nifti, numpy_format):
    np.save(tmp_path / "a.npy", ct[0])
    write_nifti(tmp_path / "b.nii.gz", ct)
    first, second = find_series(tmp_path).series
    with pytest.raises(ScanError, match=r"a\.npy: "):
        read_scan(first.source)
    assert np.array_equal(read_scan(second.source).voxels, ct)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.nii", "nifti"), ("A.NII.GZ", "nifti"), ("a.nhdr", "itk"), ("a.MHA", "itk"), ("a.dcm", "dicom"), ("a.txt", None)],
)
def test_a_files_name_names_its_format(name, kind):
    found = find_format(Path("folder") / name)
    assert (found.name if found else None) == kind
