"""Proves what Python hands an encoder: lists and data frames give data frames, arrays with an affine what their file gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dagman.errors import DagmanError, EncoderError, ScanError, TableError
from dagman.testing import make_body, write_nifti


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two bodies, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    good = [write_nifti(folder / f"body{seed}.nii.gz", make_body(seed=seed), 5.0) for seed in range(2)]
    broken = folder / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    return [*good, broken]


def test_a_list_of_paths_gives_a_data_frame_in_its_order(encoder, paths):
    frame = encoder.embed([paths[1], paths[2], paths[0]])
    assert frame["scan"].tolist() == [str(paths[1]), str(paths[0])]
    columns = [name for name in frame.columns if name != "scan"]
    for row, path in zip(frame[columns].to_numpy(), (paths[1], paths[0]), strict=True):
        assert np.array_equal(row.astype(np.float32), encoder.embed(path).values[0])
    ((name, reason),) = frame.attrs["refused"]
    assert "broken.nii.gz" in name
    assert reason


def test_a_data_frame_keeps_its_columns_and_its_points_are_read(encoder, paths):
    point = [50.0, 40.0, 60.0]
    centers = dict(zip(("center_x_mm", "center_y_mm", "center_z_mm"), point, strict=True))
    rows = {"scan": paths[:2], "age": [61, 54], **centers}
    frame = encoder.embed(pd.DataFrame(rows, index=["a", "b"]), crop_mm=80, crop_spacing=2.5)
    assert frame.index.tolist() == ["a", "b"]
    assert frame["age"].tolist() == [61, 54]
    alone = encoder.embed(paths[1], points=[point], crop_mm=80, crop_spacing=2.5)
    assert np.array_equal(frame.loc["b", list(alone.columns)].to_numpy(dtype=np.float32), alone.values[0])


def test_an_array_with_its_affine_is_the_scan_that_it_came_from(encoder, paths):
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    # In the order of axes that nibabel gives: resampling adds up in it.
    voxels = np.asfortranarray(make_body(seed=0))
    assert np.array_equal(encoder.embed((voxels, affine)).values, encoder.embed(paths[0]).values)


def test_features_of_a_path_are_those_of_the_prepared_scan(encoder, paths):
    of_path = encoder.features(paths[0])
    assert [x.shape[0] for x in of_path] == [1] * 4
    assert [x.shape[1] for x in of_path] == list(encoder.network.encoder.widths)
    (second,) = encoder.features(str(paths[0]), stages=(2,))
    assert torch.equal(second, of_path[1])


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (np.zeros((8, 8, 8)), EncoderError, "an array has no position or spacing. Give a path"),
        (5, EncoderError, "a int is not a scan"),
        ((np.zeros((8, 8)), np.eye(4)), ScanError, "an array of a scan has 3 axes, not 2"),
        ((np.zeros((8, 8, 8)), np.eye(3)), ScanError, "an affine is 4 x 4, not 3 x 3"),
        ((np.full((8, 8, 8), np.nan), np.eye(4)), ScanError, "not finite numbers"),
        ([], TableError, "there are no scans to embed"),
        (pd.DataFrame({"scn": ["a"]}), TableError, "has no column 'scan'. Nearest: scn"),
        (["absent.nii.gz"], TableError, "none of 1 scans can be embedded"),
    ],
)
def test_what_is_no_scan_is_one_line(encoder, given, kind, text):
    with pytest.raises(DagmanError) as caught:
        encoder.embed(given)
    assert isinstance(caught.value, kind)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_beside_several_scans_is_refused(encoder, paths):
    with pytest.raises(EncoderError, match="Give them as columns"):
        encoder.embed(paths, mask=paths[0])
