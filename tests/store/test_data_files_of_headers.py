"""A header and its data file are one source: a change of either is seen; and the order of bytes is the one that a file states."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan
from dagman.scans.scan import hash_scan
from dagman.scans.verdict import judge_scan
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store


@pytest.mark.parametrize(("name", "data"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw")])
def test_a_changed_data_file_replaces_the_scan(tmp_path: Path, trunk, name, data):
    scans, store = tmp_path / "scans", tmp_path / "store"
    scans.mkdir()
    voxels = trunk(1)

    def write(values: np.ndarray) -> None:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
        image.SetSpacing((4.0, 4.0, 4.0))
        SimpleITK.WriteImage(image, str(scans / name))

    write(voxels)
    (series,) = find_series(scans).series
    assert [path.name for path in series.files] == [name, data]
    prepare_store(scans, store, preparation=Preparation(spacing=8.0), workers=1)
    before, status = Store(store).rows[0], (scans / data).stat()
    (scans / data).write_bytes((voxels.T + np.int16(5)).tobytes())
    # As `cp -p` does: the size and the time stay.
    os.utime(scans / data, ns=(status.st_atime_ns, status.st_mtime_ns))
    summary = prepare_store(scans, store, preparation=Preparation(spacing=8.0), workers=1)
    assert summary.replaced == (str(scans / name),)
    (after,) = Store(store).rows
    assert after.content_hash != before.content_hash
    assert prepare_store(scans, store, preparation=Preparation(spacing=8.0), workers=1).already == 1


def test_headers_whose_data_are_missing_or_listed_are_found(tmp_path: Path):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = "
    (tmp_path / "gone.mhd").write_text(f"{header}gone.raw\n")
    (tmp_path / "list.mhd").write_text(f"{header}LIST\nslice1.bin\nslice2.bin\n")
    for number in (1, 2):
        (tmp_path / f"slice{number}.bin").write_bytes(bytes(8))
    files = {Path(one.source).name: [path.name for path in one.files] for one in find_series(tmp_path).series}
    assert files == {"gone.mhd": ["gone.mhd"], "list.mhd": ["list.mhd", "slice1.bin", "slice2.bin"]}


def test_a_byte_swapped_scan_is_the_same_scan(tmp_path: Path, trunk):
    voxels = trunk(1).astype("<i2")
    swapped = voxels.astype(">i2")
    matrix = np.diag([-4.0, -4.0, 4.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, matrix), tmp_path / "little.nii")
    nibabel.save(nibabel.Nifti1Image(swapped, matrix, header=nibabel.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    shape = " ".join(map(str, voxels.shape))
    start = f"NDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\nElementSpacing = 4 4 4\nDimSize = {shape}\n"
    direction = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_SHORT\nElementDataFile = "
    (tmp_path / "big.mha").write_bytes(f"{start}{direction}LOCAL\n".encode() + swapped.tobytes(order="F"))
    nrrd = (
        f"NRRD0004\ntype: int16\ndimension: 3\nsizes: {shape}\nspace: left-posterior-superior\n"
        "space directions: (4,0,0) (0,4,0) (0,0,4)\nspace origin: (0,0,0)\nendian: big\nencoding: raw\n\n"
    )
    (tmp_path / "big.nrrd").write_bytes(nrrd.encode() + swapped.tobytes(order="F"))
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    hashes = {path.name: hash_scan(read_scan(path)) for path in sorted(tmp_path.iterdir())}
    assert len(hashes) == 4
    assert set(hashes.values()) == {hashes["little.nii"]}


def test_an_order_that_a_file_states_wrongly_is_refused_as_noise(tmp_path: Path, trunk):
    nibabel.save(nibabel.Nifti1Image(trunk(1), np.diag([-4.0, -4.0, 4.0, 1.0])), tmp_path / "scan.nii")
    data = bytearray((tmp_path / "scan.nii").read_bytes())
    data[352:] = np.frombuffer(bytes(data[352:]), "<i2").byteswap().tobytes()
    (tmp_path / "scan.nii").write_bytes(data)
    assert not judge_scan(read_scan(tmp_path / "scan.nii", modality="CT")).accepted
