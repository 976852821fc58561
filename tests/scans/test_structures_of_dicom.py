"""Structures of RTSTRUCT and SEG files as masks, by name: volumes against closed forms, holes, gaps, overlaps, tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import dagman
from dagman.encoder.pooling import Pooling
from dagman.errors import ScanError, TableError
from dagman.scans.affine import LPS_TO_RAS, Affine
from dagman.scans.dicom.derived import write_segments
from dagman.scans.discovery import find_series
from dagman.scans.reading import read_scan
from dagman.scans.structures import read_structures
from dagman.scans.structures.contours import fill_plane, fill_volume
from dagman.tables.items import load_mask, read_mask
from dagman.tables.labelled_scans import read_labelled_scans
from dagman.tables.table import read_table
from dagman.tasks.segment.cases import load_classes


def circle(radius: float, centre: tuple[float, float], z: float, points: int = 180) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre
    return np.column_stack([ring, np.full(points, z)])


def rectangle(low: tuple[float, float], high: tuple[float, float], z: float) -> np.ndarray:
    (x0, y0), (x1, y1) = low, high
    return np.array([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]])


def write_rtstruct(path: Path, rois: dict[str, list[np.ndarray]], affine: np.ndarray, kind: str = "CLOSED_PLANAR") -> Path:
    """Contours, each N x 3 in voxels of the scan, as a planning system writes them: LPS millimetres, three decimals."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.PatientID = "RTSTRUCT", "MRN-4711"
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=3):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            world = Affine(affine).to_world(points) @ LPS_TO_RAS[:3, :3]
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.3f}" for value in world.ravel()]
            drawn.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
    data.save_as(path, enforce_file_format=True)
    return path


def test_pixels_are_inside_where_their_centres_are():
    square = rectangle((1.5, 2.5), (4.5, 6.5), 0)[:, :2]
    inside = fill_plane([square], (8, 9))
    assert np.array_equal(np.argwhere(inside).min(0), [2, 3])
    assert np.array_equal(np.argwhere(inside).max(0), [4, 6])
    assert inside.sum() == 12
    # Whole numbers as corners: half of the border belongs to it, so that neighbours share no pixel and leave none out.
    left, right = rectangle((0, 0), (3, 5), 0)[:, :2], rectangle((3, 0), (6, 5), 0)[:, :2]
    one, other = fill_plane([left], (8, 9)), fill_plane([right], (8, 9))
    assert not (one & other).any()
    assert (one | other).sum() == 30
    assert np.array_equal(fill_plane([square[::-1]], (8, 9)), inside), "either direction"
    assert fill_plane([square - 100], (8, 9)).sum() == 0
    assert fill_plane([rectangle((-50, -50), (50, 50), 0)[:, :2]], (8, 9)).all()


def test_a_ring_has_its_hole_as_two_contours_and_as_one_keyhole():
    outer, inner = circle(20, (30, 30), 0), circle(9, (30, 30), 0)
    wanted = np.pi * (20**2 - 9**2)
    ring = fill_plane([outer[:, :2], inner[:, :2]], (60, 60))
    assert ring.sum() == pytest.approx(wanted, rel=0.01)
    assert not ring[30, 30]
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])[:, :2]
    assert (fill_plane([keyhole], (60, 60)) != ring).mean() < 0.002


@pytest.mark.parametrize("step", [1.0, 2.0, 2.5])
def test_a_ball_has_its_volume_whatever_the_distance_of_its_contours(step):
    radius, middle = 14.0, 20.0
    places = np.arange(middle - radius + step / 2, middle + radius, step)
    rings = [circle(np.sqrt(radius**2 - (z - middle) ** 2), (20, 21), z) for z in places]
    ball = fill_volume(rings, (42, 43, 41))
    assert ball.sum() == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    # A slice that lies just between two ends belongs to one of them.
    assert np.argwhere(ball).mean(0) == pytest.approx([20, 21, middle], abs=0.15)


def test_a_box_between_slices_keeps_its_height_and_a_gap_stays_a_gap():
    places = [4.5, 7.5, 10.5]
    box = fill_volume([rectangle((2.5, 2.5), (8.5, 6.5), z) for z in places], (12, 12, 30))
    # Three contours, 3 slices apart, stand for 9 slices.
    assert np.array_equal(np.unique(np.argwhere(box)[:, 2]), np.arange(3, 12))
    assert box.sum() == 6 * 4 * 9
    parted = fill_volume([rectangle((2.5, 2.5), (8.5, 6.5), z) for z in (3, 4, 5, 12, 13)], (12, 12, 30))
    assert np.array_equal(np.unique(np.argwhere(parted)[:, 2]), [3, 4, 5, 12, 13])


@pytest.fixture(scope="module")
def scan_with_plan(tmp_path_factory, ct, placement, write_dicom):
    folder = tmp_path_factory.mktemp("plan")
    write_dicom(folder / "ct", ct, placement, FrameOfReferenceUID="1.2.3.4")
    body = [rectangle((2.5, 2.5), (12.5, 11.5), z) for z in range(9)]
    tumour = [rectangle((4.5, 4.5), (10.5, 9.5), z) for z in range(1, 8)]
    overlap = [rectangle((7.5, 4.5), (11.5, 9.5), z) for z in range(3, 6)]
    write_rtstruct(folder / "plan.dcm", {"BODY": body, "GTV": tumour, "Lung R": overlap, "empty": []}, placement)
    return folder


def write_table(folder: Path, *rows: str) -> Path:
    path = folder / "table.csv"
    path.write_text("scan,mask,label_value,patient,label\n" + "\n".join(rows) + "\n")
    return path


def test_a_table_names_structures_which_may_overlap(scan_with_plan, ct):
    rows = ("ct,plan.dcm,GTV,p1,1", "ct,plan.dcm,lung r,p1,0", "ct,plan.dcm,3,p1,0")
    table = read_table(write_table(scan_with_plan, *rows), label="label")
    assert table.names == ["ct:GTV", "ct:lung r", "ct:3"]
    scan = read_scan(scan_with_plan / "ct")
    tumour, lung, body = (load_mask(item, scan) for item in table.items)
    wanted = np.zeros(ct.shape, bool)
    wanted[5:11, 5:10, 1:8] = True
    world = scan.affine.to_world(np.argwhere(tumour))
    assert tumour.sum() == wanted.sum()
    assert scan.voxels[tumour].mean() == pytest.approx(ct[wanted].mean())
    assert world.mean(0) == pytest.approx(Affine(np.diag([0.8, 0.9, 2.5, 1])).to_world([[7.5, 7, 4]])[0] + [-30, 12, 100], abs=1e-3)
    assert (tumour & lung).sum() == 3 * 5 * 3
    assert body.sum() == 10 * 9 * 9


def test_what_cannot_be_meant_is_named(scan_with_plan, placement):
    def read(row: str) -> None:
        table = read_table(write_table(scan_with_plan, row, "ct,plan.dcm,BODY,p2,0"), label="label")
        read_mask(table.items[0])

    with pytest.raises(ScanError, match=r"plan\.dcm: has no structure 'PTV' \(available: 'BODY', 'GTV', 'Lung R', 'empty'\)"):
        read("ct,plan.dcm,PTV,p1,1")
    with pytest.raises(ScanError, match=r"holds 4 structures: .* Name one of them in the column label_value"):
        read("ct,plan.dcm,,p1,1")
    with pytest.raises(ScanError, match="structure 'empty' has no closed contour"):
        read("ct,plan.dcm,empty,p1,1")
    upright = [np.array([[2, 5, 1], [2, 5, 7], [8, 5, 7], [8, 6, 1]], float)]
    write_rtstruct(scan_with_plan / "upright.dcm", {"GTV": upright}, placement)
    with pytest.raises(ScanError, match="deviate by up to"):
        read("ct,upright.dcm,,p1,1")
    far = [rectangle((500, 500), (510, 510), 3)]
    write_rtstruct(scan_with_plan / "far.dcm", {"GTV": far}, placement)
    with pytest.raises(ScanError, match="'GTV' contains no voxel of its scan"):
        read("ct,far.dcm,GTV,p1,1")
    with pytest.raises(TableError, match="label_value is not a whole number"):
        read("ct,table.csv,GTV,p1,1")


def test_a_seg_gives_its_segments_by_name(scan_with_plan, ct):
    pytest.importorskip("highdicom")
    series = find_series(scan_with_plan / "ct").series[0]
    scan = read_scan(scan_with_plan / "ct")
    labels = np.zeros(scan.shape, np.uint8)
    labels[2:6, 3:8, 2:5], labels[8:12, 3:8, 4:7] = 1, 2
    write_segments(scan_with_plan / "seg.dcm", labels, {1: "liver", 2: "GTV"}, series.files)
    table = read_table(write_table(scan_with_plan, "ct,seg.dcm,GTV,p1,1", "ct,seg.dcm,Liver,p1,0"), label="label")
    assert np.array_equal(load_mask(table.items[0], scan), labels == 2)
    assert np.array_equal(load_mask(table.items[1], scan), labels == 1)
    every, names = read_structures(scan_with_plan / "seg.dcm", lambda: (scan.affine, scan.shape))
    assert names == {1: "GTV", 2: "liver"} or names == {1: "liver", 2: "GTV"}
    placed = every.affine.find_on(every.shape, scan.affine, 0.1).place(every.voxels, scan.shape)
    for value, name in names.items():
        assert np.array_equal(placed == value, labels == {"liver": 1, "GTV": 2}[name])


def test_all_contours_are_one_map_in_which_the_later_structure_counts(scan_with_plan):
    scan = read_scan(scan_with_plan / "ct")
    every, names = read_structures(scan_with_plan / "plan.dcm", lambda: (scan.affine, scan.shape))
    assert names == {3: "BODY", 4: "GTV", 5: "Lung R", 6: "empty"}
    sizes = {"BODY": 10 * 9 * 9, "GTV": 6 * 5 * 7, "Lung R": 4 * 5 * 3}
    overlap = 3 * 5 * 3
    assert [(every.voxels == value).sum() for value in (5, 4, 3)] == [
        sizes["Lung R"],
        sizes["GTV"] - overlap,
        sizes["BODY"] - sizes["GTV"] - sizes["Lung R"] + overlap,
    ]


def test_each_structure_of_a_plan_gets_a_vector_of_its_own(scan_with_plan, make_tiny_encoder):
    encoder = dagman.load(make_tiny_encoder(crop_body=False), device="cpu")
    found = encoder.embed(
        scan_with_plan / "ct", label_map=scan_with_plan / "plan.dcm", pooling=Pooling(stages=(1,), pools=("mean",))
    )
    assert found["label_name"].tolist() == ["BODY", "GTV", "Lung R"]
    assert found["label_value"].tolist() == [3, 4, 5]
    assert found["voxels"].tolist() == [10 * 9 * 9, 6 * 5 * 7, 4 * 5 * 3]
    ((_, reason),) = found.attrs["refused"]
    assert "structure 'empty' has no closed contour" in reason


@pytest.fixture(scope="module")
def scans_with_plans(tmp_path_factory, ct, placement, write_dicom):
    """Two scans; both structures are drawn in the first, and one of them in the second, where the other has no contour."""
    folder = tmp_path_factory.mktemp("plans")
    left = [rectangle((2.5, 4.5), (4.5, 9.5), z) for z in range(3, 6)]
    right = [rectangle((7.5, 4.5), (11.5, 9.5), z) for z in range(2, 6)]
    over = [rectangle((3.5, 4.5), (8.5, 9.5), z) for z in range(3, 6)]
    for name, drawn in (("a", {"Left": left, "Right": right, "Over": over}), ("b", {"Right": right, "Left": []})):
        write_dicom(folder / name, ct, placement, FrameOfReferenceUID="1.2.3.4", PatientID=name)
        write_rtstruct(folder / f"{name}.dcm", drawn, placement)
    (folder / "table.csv").write_text("scan,mask,patient\na,a.dcm,p1\nb,b.dcm,p2\n")
    return folder


def test_several_structures_of_a_plan_are_one_label_map_to_segment(scans_with_plans):
    data = read_labelled_scans(scans_with_plans / "table.csv", labels="right, Left")
    assert [(one.name, one.values) for one in data.structures] == [("right", (1,)), ("Left", (2,))]
    scan = read_scan(scans_with_plans / "a")
    both, one = (load_classes(item, scan, data.structures) for item in data.items)
    assert [(both == value).sum() for value in (1, 2)] == [4 * 5 * 4, 2 * 5 * 3]
    assert [(one == value).sum() for value in (1, 2)] == [4 * 5 * 4, 0]
    # What has no contour was not drawn, which is not to say that it is absent.
    assert [item.contoured for item in data.items] == [None, frozenset({"right"})]
    assert "1 mask lacks at least one of the structures" in str(data.notes[-1])


def test_named_structures_that_overlap_or_are_absent_are_refused_by_name(scans_with_plans):
    table = scans_with_plans / "table.csv"
    data = read_labelled_scans(table, labels="Left,Right,Over")
    with pytest.raises(ScanError, match=r"a\.dcm: structure 'Over' overlaps 'Left', 'Right'"):
        read_mask(data.items[0])
    with pytest.raises(TableError, match=r"no mask contains 'Spleen' \(available: 'Left', 'Over', 'Right'\)"):
        read_labelled_scans(table, labels="Left,Spleen")
    with pytest.raises(TableError, match="the name left is assigned to two structures"):
        read_labelled_scans(table, labels="Left,left")
    mixed = scans_with_plans / "mixed.csv"
    mixed.write_text("scan,mask,patient\na,a.dcm,p1\nb,b,p2\n")
    with pytest.raises(TableError, match="some masks are neither RTSTRUCT nor SEG"):
        read_labelled_scans(mixed, labels="Left,Right")


def test_segments_by_name_are_one_label_map_to_segment(scans_with_plans):
    pytest.importorskip("highdicom")
    scan = read_scan(scans_with_plans / "a")
    labels = np.zeros(scan.shape, np.uint8)
    labels[2:6, 3:8, 2:5], labels[8:12, 3:8, 4:7], labels[8:12, 9:11, 1:3] = 1, 2, 3
    files = find_series(scans_with_plans / "a").series[0].files
    write_segments(scans_with_plans / "seg.dcm", labels, {1: "liver", 2: "GTV", 3: "spleen"}, files)
    table = scans_with_plans / "segments.csv"
    table.write_text("scan,mask,patient\na,seg.dcm,p1\n")
    data = read_labelled_scans(table, labels="spleen,liver")
    wanted = np.select([labels == 3, labels == 1], [1, 2])
    assert np.array_equal(load_classes(data.items[0], scan, data.structures), wanted)
