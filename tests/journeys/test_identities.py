"""Proves that no identity leaves the scans: planted wherever a scan can carry one, and looked for in every byte that is written.

Packed files are unpacked first: gzip, zip, blosc2, Parquet.
"""

from __future__ import annotations

import gzip
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK
from nibabel.nifti1 import Nifti1Extension
from pydicom.uid import generate_uid

from dagman.cli import application
from dagman.records.key import find_key
from dagman.testing import TINY_SETTINGS

pytestmark = pytest.mark.slow

PLANTED = (
    *("Quillfeather", "MRN-7734201", "Vossberg", "19310217", "Mouffetard", "glassblower", "ACC-99117", "Brandywine", "Oakley"),
    *("zither", "Tannenbaum", "Ostrander", "Pettibone", "Lindqvist", "Harkness", "Merriweather"),
)
"""Words and numbers that no program writes of itself."""
SETTINGS = [word for one in (*TINY_SETTINGS, "train.steps=2") for word in ("--set", one)]


def _make_body(seed: int) -> np.ndarray:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, size) for size in (36, 36, 34)), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.85) ** 2 < 1, 40.0, -1000.0) - 800 * ((x / 0.4) ** 2 + (y / 0.4) ** 2 < 1)
    return np.rint(hu + np.random.default_rng(seed).normal(0, 20, hu.shape)).astype(np.int16)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, write_dicom: Callable[..., list[Path]]) -> Path:
    """A table, clean, and scans of three formats that carry identities in headers, private tags, extensions, keys and names."""
    place = tmp_path_factory.mktemp("road")
    folder = place / "Harkness_Merriweather"
    matrix = np.diag([-4.0, -4.0, 4.0, 1.0])  # As ITK has it without a direction.
    tags = {
        "PatientName": "Quillfeather^Ada",
        "PatientID": "MRN-7734201",
        "PatientComments": "Neighbour of Vossberg",
        "PatientBirthDate": "19310217",
        "PatientAddress": "Rue Mouffetard 12",
        "Occupation": "glassblower",
        "AccessionNumber": "ACC-99117",
        "ReferringPhysicianName": "Brandywine^Otto",
        "InstitutionName": "Saint Oakley Hospital",
        "StudyDescription": "zither",
        "SeriesDescription": "Tannenbaum thorax",
        "StudyID": "Ostrander",
        "FrameOfReferenceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "Manufacturer": "none",
        "SeriesNumber": 3,
    }
    for path in write_dicom(folder / "Quillfeather_Ada", _make_body(0), matrix, **tags):
        data = pydicom.dcmread(path)
        data.private_block(0x0011, "Pettibone", create=True).add_new(0x01, "LO", "Lindqvist")
        data.save_as(path)
    image = nibabel.Nifti1Image(_make_body(1), matrix)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"Quillfeather MRN-7734201"
    image.header["db_name"] = b"Vossberg"
    image.header.extensions.append(Nifti1Extension("comment", b"Brandywine of Oakley"))
    nibabel.save(image, folder / "Lindqvist_19310217.nii.gz")
    volume = SimpleITK.GetImageFromArray(_make_body(2).T)
    volume.SetSpacing((4.0, 4.0, 4.0))
    volume.SetMetaData("patient", "Pettibone")
    volume.SetMetaData("Ostrander", "glassblower")
    SimpleITK.WriteImage(volume, str(folder / "Tannenbaum_zither.nrrd"))
    rows = []
    for number, name in enumerate(("Quillfeather_Ada", "Lindqvist_19310217.nii.gz", "Tannenbaum_zither.nrrd")):
        labels = (_make_body(number) < -500).astype(np.uint8)
        labels[0], labels[-1], labels[:, :2], labels[:, -2:] = 0, 0, 0, 0
        mask = folder / f"Merriweather_{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels, matrix), mask)
        names = {"scan": f"{folder.name}/{name}", "mask": f"{folder.name}/{mask.name}"}
        rows.append({"item": f"s{number}", **names, "patient": f"p{number}"})
    pd.DataFrame(rows).to_csv(place / "table.csv", index=False)
    return place


def _call(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dagman", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            application.main()
    assert not ended.value.code, arguments


def _unpack(path: Path) -> Iterator[bytes]:
    """A file's name, its bytes, and what is packed in them."""
    data = path.read_bytes()
    yield path.name.encode()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)
    if path.suffix == ".b2nd":
        held = blosc2.open(str(path), mode="r")
        yield held[:].tobytes()
        yield repr(dict(held.schunk.meta)).encode() + repr(dict(held.schunk.vlmeta)).encode()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield str(table.to_pydict()).encode()
        yield str(table.schema.metadata).encode()


def _find(folders: list[Path], words: list[str]) -> list[tuple[str, str]]:
    # DICOM and NRRD may write a name in either case; UTF-16 is what some libraries keep text in.
    forms = [word.lower().encode(coding) for word in words for coding in ("utf-8", "utf-16-le")]
    wanted = re.compile(b"|".join(map(re.escape, forms)))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    return [
        (path.name, found.decode(errors="replace"))
        for path in files
        for part in _unpack(path)
        for found in wanted.findall(part.lower())
    ]


def test_no_identity_is_found_in_anything_that_the_road_writes(planted, tmp_path):
    pytest.importorskip("highdicom")
    scans, table = planted / "Harkness_Merriweather", planted / "table.csv"
    chosen = [scans / "Quillfeather_Ada", scans / "Lindqvist_19310217.nii.gz", scans / "Tannenbaum_zither.nrrd"]
    store, run, out = tmp_path / "store", tmp_path / "run", tmp_path / "segmented"
    _call("prepare", *chosen, "--out", store, "--spacing", 4, "--workers", 1)
    _call("pretrain", store, "--out", run, *SETTINGS)
    _call("report", run)
    _call("embed", run, store, "--out", tmp_path / "features" / "stored.parquet", "--device", "cpu")
    _call("embed", run, table, "--out", tmp_path / "features" / "items.csv", "--device", "cpu")
    fast = ("--device", "cpu", "--out")
    _call("segment", run, table, "--folds", 3, "--steps", 2, "--measures", "dice", *fast, out)
    _call("predict", out, table, *fast, tmp_path / "predicted")
    assert len(list(out.rglob("*.dcm")) + list((tmp_path / "predicted").rglob("*.dcm"))) == 2
    key = find_key()
    assert key is not None
    # The folders themselves, and the host where its name is more than a common word.
    host = [socket.gethostname()] if len(socket.gethostname()) > 6 else []
    found = _find([store, run, tmp_path / "features", out, tmp_path / "predicted"], [*PLANTED, *host, key.secret.hex()])
    print(f"identities found: {len(found)}")
    assert found == []


def test_the_search_finds_what_is_planted_in_each_of_the_formats(planted):
    parts = [part for path in planted.glob("Harkness*/**/*") if path.is_file() for part in _unpack(path)]
    assert {word for word in PLANTED if any(word.encode() in part for part in parts)} == set(PLANTED) - {"Harkness"}
