"""Proves that predicted maps lie on the scan's own grid, whatever its axes, tilt, flips and header, and that a file says so."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from dagman.evaluation.segmentation_metrics import measure_dice
from dagman.scans.affine import Affine
from dagman.scans.label_files import write_label_map
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan
from dagman.store.preparation import prepare_scan
from dagman.tables.structures import Structure
from dagman.tasks.contract import Contract
from dagman.tasks.segment.model import SegmentationModel, adapt_encoder, load_model, save_model, start_model
from dagman.tasks.segment.scan_labels import label_on_scan_grid


class Threshold(nn.Module):
    """What a perfect network would say of the ball: more than 170 HU, which is 0.78 of the intensity range."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 2

    def forward(self, view: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(view), (view - 0.78) * 30], 1)


@pytest.fixture(scope="module")
def model(small_encoder) -> SegmentationModel:
    adapted = adapt_encoder(small_encoder, side=32, spacing=2.5)
    started = start_model(adapted, [Structure(name="ball", values=(7,))])
    return replace(started, network=Threshold())


def turn(axes: str, degrees: tuple[float, float, float]) -> np.ndarray:
    """An affine at 4 x 3.5 x 5 mm whose axes run to the letters given, turned."""
    matrix = np.eye(4)
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    directions = np.zeros((3, 3))
    for column, letter in enumerate(axes):
        row, sign = letters[letter]
        directions[row, column] = sign
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ directions @ np.diag([4.0, 3.5, 5.0])
    matrix[:3, 3] = (-60.0, 31.5, -400.25)
    return matrix


def lies_on(said: np.ndarray, ball: np.ndarray) -> bool:
    """Whether one is the other but for blur: a shift by half a voxel would show."""
    shift = np.argwhere(said).mean(0) - np.argwhere(ball).mean(0)
    return bool(np.abs(shift).max() < 0.15 and measure_dice(said, ball) > 0.9)


@pytest.mark.parametrize(
    "affine",
    [turn("RAS", (0, 0, 0)), turn("LPS", (0, 0, 0)), turn("PIR", (0, 0, 0)), turn("LAS", (12, -7, 20)), turn("SLP", (3, 15, -9))],
    ids=["upright", "flipped", "permuted", "oblique", "oblique and permuted"],
)
def test_a_map_is_on_the_grid_of_its_scan(tmp_path, make_ball, model, affine):
    hu, ball = make_ball(3)
    image = nib.Nifti1Image(hu, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = model.encoder.read(tmp_path / "scan.nii.gz")
    write_label_map(tmp_path / "map.nii.gz", model.to_values(model.label_scan(scan)), scan)
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.shape == image.shape
    wanted = nib.load(tmp_path / "scan.nii.gz").header
    for name in ("srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"):
        np.testing.assert_array_equal(written.header[name], wanted[name])
    np.testing.assert_array_equal(written.header["pixdim"][:4], wanted["pixdim"][:4])
    said = np.asarray(written.dataobj)
    assert said.dtype == np.uint8
    assert set(np.unique(said)) == {0, 7}
    assert lies_on(said == 7, ball == 1)


def test_a_header_with_a_qform_alone_is_kept(tmp_path, make_ball, model):
    hu, _ = make_ball(1)
    image = nib.Nifti1Image(hu, None)
    image.set_qform(turn("LAS", (10, 0, 5)), code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    write_label_map(tmp_path / "map.nii.gz", np.ones(hu.shape, np.uint8), scan)
    written = nib.load(tmp_path / "map.nii.gz")
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (0, 1)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii").affine)


def test_a_map_of_another_format_has_the_scans_affine(tmp_path, make_ball, model):
    hu, ball = make_ball(2)
    source = SimpleITK.GetImageFromArray(hu.T)
    source.SetSpacing((4.0, 3.5, 5.0))
    source.SetOrigin((10.0, -20.0, 33.0))
    SimpleITK.WriteImage(source, str(tmp_path / "scan.nrrd"))
    scan = model.encoder.read(tmp_path / "scan.nrrd")
    write_label_map(tmp_path / "map.nii.gz", model.to_values(model.label_scan(scan)), scan)
    written = nib.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, scan.affine.matrix, atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert lies_on(np.asarray(written.dataobj) == 7, ball == 1)


def test_values_above_255_are_written_as_they_are(small_encoder):
    model = start_model(small_encoder, [Structure(name="a", values=(300, 301)), Structure(name="b", values=(2,))])
    assert model.to_values(np.array([0, 1, 2], np.uint8)).tolist() == [0, 300, 2]
    assert model.names == {300: "a", 2: "b"}


def test_a_saved_model_says_the_same(tmp_path, small_encoder, make_ball):
    started = start_model(adapt_encoder(small_encoder, side=32, spacing=6.0), [Structure(name="ball", values=(3,))], seed=5)
    contract = Contract(units=("scan",), items=2, patients=1, scans=("ab",), labels=("ball",), spacing=6.0, modalities=("CT",))
    save_model(replace(started, contract=contract, mirrored=True), tmp_path / "model")
    again = load_model(tmp_path, device="cpu")
    assert (again.contract, again.mirrored, again.structures) == (contract, True, started.structures)
    assert again.encoder.config.spacing == 6.0
    assert again.digest == started.digest
    started.network.eval()
    view = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.network(view), started.network(view))


def test_mirrored_windows_are_averaged_on_request(small_encoder, make_ball, tmp_path):
    hu, _ = make_ball(0)
    nib.save(nib.Nifti1Image(hu, np.diag([5.0, 5, 5, 1])), tmp_path / "scan.nii")
    model = start_model(adapt_encoder(small_encoder, side=32, spacing=5.0), [Structure(name="ball", values=(3,))])
    model.network.eval()
    prepared = model.encoder.prepare(tmp_path / "scan.nii")
    plain, mirrored = model.measure_class_weights(prepared), model.measure_class_weights(prepared, mirror=True)
    torch.testing.assert_close(mirrored.sum(0), torch.ones(prepared.shape), atol=1e-4, rtol=0)
    assert (plain - mirrored).abs().max() > 1e-4


def test_labels_of_many_classes_are_those_of_all_their_chances_at_once(small_encoder):
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 300, (30, 26, 70)).astype(np.int16)
    scan = Scan(voxels=voxels, affine=Affine(np.diag([4.0, 5.0, 7.0, 1.0])), modality="CT", patient="p", source="s")
    structures = [Structure(name=f"s{value}", values=(value,)) for value in range(1, 31)]
    model = start_model(adapt_encoder(small_encoder, side=32, spacing=5.0), structures)
    model.network.eval()
    prepared = prepare_scan(scan, model.encoder.preparation)
    assert max(prepared.shape) > 2 * model.side
    wanted = label_on_scan_grid(model.measure_class_weights(prepared), prepared, scan)
    found = model.label_prepared(prepared, scan)
    assert len(np.unique(wanted)) > 10
    np.testing.assert_array_equal(found, wanted)
