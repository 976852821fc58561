"""Proves that MedMNIST's 3D files become scans in HU and a table with the official split, and that other files are refused."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import nibabel
import numpy as np
import pandas as pd
import pytest

from dagman.errors import TableError
from dagman.scans.reading import read_scan
from dagman.scans.verdict import judge_scan
from dagman.tables.medmnist import NOMINAL_SPACING, import_medmnist
from dagman.tables.table import read_table


def _draw_images(rng, shape):
    """Grey values in which neighbours are alike, as in images; each voxel alone, they would be taken for noise."""
    coarse = rng.integers(0, 256, (shape[0], *(-(-side // 2) for side in shape[1:])), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 2, 2, 2), np.uint8))[:, : shape[1], : shape[2], : shape[3]]


def _write_set(path, *, side: int = 28, classes: int = 2, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = _draw_images(rng, (count, side, side, side))
        arrays[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return arrays


def test_items_labels_and_split_are_as_in_the_file(tmp_path):
    arrays = _write_set(tmp_path / "nodulemnist3d.npz")
    summary = import_medmnist(tmp_path / "nodulemnist3d.npz", tmp_path / "out")
    assert summary.items == {"train": 4, "val": 2, "test": 3}
    table = read_table(tmp_path / "out" / "table.csv", label="label")
    assert table.classes == ("benign", "malignant")
    assert list(table.splits) == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    frame = pd.read_csv(tmp_path / "out" / "table.csv")
    assert frame["label_id"].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert frame["label"].tolist()[:2] == ["benign", "malignant"]
    image = nibabel.load(tmp_path / "out" / frame["scan"][1])
    # 0 to 255 stand for -1000 to 400 HU.
    np.testing.assert_allclose(image.get_fdata(), -1000 + arrays["train_images"][1] * (1400 / 255), atol=0.51)
    assert image.header.get_zooms() == (1.0, 1.0, 1.0)


def test_the_center_is_the_middle_of_the_cube(tmp_path):
    _write_set(tmp_path / "nodulemnist3d.npz")
    import_medmnist(tmp_path / "nodulemnist3d.npz", tmp_path / "out")
    item = read_table(tmp_path / "out" / "table.csv").items[0]
    scan = read_scan(item.scan)
    np.testing.assert_allclose(scan.affine.to_voxel([item.center_mm])[0], [13.5, 13.5, 13.5])


@pytest.mark.parametrize(
    ("name", "side", "spacing"),
    [
        ("nodulemnist3d_64.npz", 64, 1.0),
        ("fracturemnist3d_64.npz", 64, 1.0),
        ("organmnist3d.npz", 28, NOMINAL_SPACING),
    ],
)
def test_spacing_follows_the_set_and_its_size(tmp_path, name, side, spacing):
    _write_set(tmp_path / name, side=side, classes=2)
    assert import_medmnist(tmp_path / name, tmp_path / "out").spacing == pytest.approx(spacing)
    assert import_medmnist(tmp_path / name, tmp_path / "out", spacing=1.5).spacing == 1.5


def test_every_item_passes_as_ct(tmp_path):
    _write_set(tmp_path / "organmnist3d.npz", classes=3)
    import_medmnist(tmp_path / "organmnist3d.npz", tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "table.csv")
    assert set(frame["label"]) == {"liver", "kidney-right", "kidney-left"}
    assert "center_x_mm" not in frame
    assert all(judge_scan(read_scan(tmp_path / "out" / scan)).accepted for scan in frame["scan"])


def test_a_set_that_is_no_ct_needs_a_window(tmp_path):
    _write_set(tmp_path / "vesselmnist3d.npz")
    with pytest.raises(TableError, match=r"'vesselmnist3d' is not a known CT set.*--window"):
        import_medmnist(tmp_path / "vesselmnist3d.npz", tmp_path / "out")
    summary = import_medmnist(tmp_path / "vesselmnist3d.npz", tmp_path / "out", window=(-200, 200))
    assert summary.window == (-200, 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "lacks val_labels"),
        ({"train_images": np.zeros((4, 28, 28), np.uint8)}, "train_images is 4 x 28 x 28 of uint8"),
        ({"test_labels": np.zeros((3, 5), np.uint8)}, "test has 3 images and 15 labels"),
        ({"train_labels": np.array([{"a": 1}], dtype=object)}, "is not a readable .npz file of arrays"),
    ],
)
def test_other_files_are_refused(tmp_path, changes, message):
    _write_set(tmp_path / "nodulemnist3d.npz", **changes)
    with pytest.raises(TableError, match=message):
        import_medmnist(tmp_path / "nodulemnist3d.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "nodulemnist3d.npz").write_bytes(content)
    with pytest.raises(TableError, match=r"is not a readable \.npz file"):
        import_medmnist(tmp_path / "nodulemnist3d.npz", tmp_path / "out")


@pytest.mark.parametrize(("given", "message"), [({"window": (5, 5)}, "window goes"), ({"spacing": 0.0}, "spacing is 0 mm")])
def test_numbers_that_make_no_scan_are_refused(tmp_path, given, message):
    with pytest.raises(TableError, match=message):
        import_medmnist(tmp_path / "nodulemnist3d.npz", tmp_path / "out", **given)


@pytest.mark.journey
def test_the_command_says_what_it_assumed(tmp_path):
    _write_set(tmp_path / "nodulemnist3d.npz")
    command = [
        sys.executable,
        "-m",
        "dagman",
        "import",
        "medmnist",
        str(tmp_path / "nodulemnist3d.npz"),
        "--out",
        str(tmp_path / "out"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "9 items: 4 train, 2 val, 3 test." in run.stdout
    assert "0 to 255 were mapped to -1000 to 400 HU, voxels for 1 mm" in run.stdout
    assert (tmp_path / "out" / "command.json").exists()


@pytest.mark.parametrize("false_entry", [False, True])
def test_a_set_that_claims_terabytes_is_refused_before_their_room_is_taken(tmp_path, false_entry):
    path = tmp_path / "nodulemnist3d.npz"
    _write_set(path)
    shape = (20 * 2**10, 1024, 1024, 1024)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["train_images.npy"] = header.getvalue() + bytes(100)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    if false_entry:
        # The directory at the end says what the header does: 4 GiB or more need zip64, so a smaller lie is told.
        small = bytearray(path.read_bytes())
        entry = small.rindex(b"train_images.npy") - 46
        small[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")
        path.write_bytes(bytes(small))
    with pytest.raises(TableError, match="claims 20480 x 1024 x 1024 x 1024 values"):
        import_medmnist(path, tmp_path / "out")
