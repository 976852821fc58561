"""Proves the LIDC-IDRI reader on a study made by hand: four readers, a nodule that two of them split, a hole, small marks."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dagman.errors import TableError
from dagman.scans.reading import read_scan
from dagman.tables.items import load_mask
from dagman.tables.lidc import import_lidc
from dagman.tables.lidc.annotations import MAX_DEPTH, read_message
from dagman.tables.table import read_table

_SHAPE, _SPACING, _ORIGIN = (48, 40, 8), (0.7, 0.7, 2.5), (-20.0, -30.0, 100.0)
_SERIES = "1.2.826.0.1.3680043.9.1"
_TRAITS = ("subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture")


def _write_series(folder: Path, series: str = _SERIES, patient: str = "LIDC-IDRI-9001") -> None:
    """Slices in shuffled file order; LPS positions, z upwards."""
    folder.mkdir(parents=True)
    voxels = np.full(_SHAPE, -850, dtype=np.int16)
    voxels[8:40, 6:34, 2:6] = 40
    voxels[:3] = -1000
    for index in range(_SHAPE[2]):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{series}.{index}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID, data.Modality = "1.2.3", series, patient, "CT"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Columns, data.Rows = _SHAPE[:2]
        data.PixelSpacing, data.ImageOrientationPatient = [_SPACING[1], _SPACING[0]], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [_ORIGIN[0], _ORIGIN[1], _ORIGIN[2] + index * _SPACING[2]]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = voxels[:, :, index].T.tobytes()
        data.save_as(folder / f"1-{(5 * index) % 8:03d}.dcm", enforce_file_format=True)


def _box(x0: int, x1: int, y0: int, y1: int) -> list[tuple[int, int]]:
    """Every pixel of a rectangle's border, in order, as LIDC's edge maps have them."""
    return (
        [(x, y0) for x in range(x0, x1)]
        + [(x1, y) for y in range(y0, y1)]
        + [(x, y1) for x in range(x1, x0, -1)]
        + [(x0, y) for y in range(y1, y0, -1)]
    )


def _roi(points: list[tuple[int, int]], index: int, *, included: bool = True, series: str = _SERIES, uid: bool = True) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    height = _ORIGIN[2] + index * _SPACING[2]
    return (
        f"<roi><imageZposition>{height}</imageZposition><imageSOP_UID>{series}.{index if uid else 'lost'}</imageSOP_UID>"
        f"<inclusion>{'TRUE' if included else 'FALSE'}</inclusion>{edges}</roi>"
    )


def _nodule(name: str, malignancy: int | None, *rois: str) -> str:
    traits = "".join(f"<{trait}>3</{trait}>" for trait in _TRAITS)
    rated = "" if malignancy is None else f"<characteristics>{traits}<malignancy>{malignancy}</malignancy></characteristics>"
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{rated}{''.join(rois)}</unblindedReadNodule>"


def _message(sessions: list[str], series: str = _SERIES) -> str:
    readers = "".join(
        f"<readingSession><servicingRadiologistID>anon</servicingRadiologistID>{s}</readingSession>" for s in sessions
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="1.3.6" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{readers}</LidcReadMessage>"
    )


def _sessions() -> list[str]:
    """A: all agree, rated 5 4 4 3. B: readers 3 and 4 split it, 1 2 (1, 3) (2, 2). C: three cut a hole, all rate 3. D: 3 and 4."""
    small = _nodule("tiny", None, _roi([(30, 30)], 6))
    other = (
        "<nonNodule><nonNoduleID>x</nonNoduleID><imageZposition>105</imageZposition><locus><xCoord>2</xCoord></locus></nonNodule>"
    )
    sessions = []
    for reader in range(4):
        a = _nodule(f"a{reader}", (5, 4, 4, 3)[reader], *(_roi(_box(8, 15 + (reader == 3), 6, 13), k) for k in (2, 3, 4)))
        if reader < 2:
            b = _nodule(f"b{reader}", reader + 1, _roi(_box(20, 34, 6, 12), 3))
        else:
            parts = (1, 3) if reader == 2 else (2, 2)
            b = _nodule(f"b{reader}i", parts[0], _roi(_box(20, 27, 6, 12), 3))
            b += _nodule(f"b{reader}ii", parts[1], _roi(_box(28, 34, 6, 12), 3))
        hole = [_roi(_box(11, 14, 25, 28), 4, included=False)] if reader < 3 else []
        c = _nodule(f"c{reader}", 3, _roi(_box(8, 17, 22, 31), 4), *hole)
        d = _nodule(f"d{reader}", 3 + reader, _roi(_box(36, 42, 22, 28), 6, uid=reader == 0)) if reader < 2 else ""
        sessions.append(a + b + c + d + (small if reader == 1 else "") + (other if reader == 2 else ""))
    return sessions


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lidc")
    series = root / "LIDC-IDRI-9001" / "study" / "series"
    _write_series(series)
    (series / "069.xml").write_text(_message(_sessions()))
    xml_only = root / "tcia-lidc-xml" / "157"
    xml_only.mkdir(parents=True)
    (xml_only / "158.xml").write_text(_message(_sessions()))
    (xml_only / "159.xml").write_text(_message(_sessions(), series="9.9.9"))
    (xml_only / "160.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov"/>')
    (xml_only / "161.xml").write_text("<LidcReadMessage>")
    return root


@pytest.fixture(scope="module")
def imported(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "lidc"
    return import_lidc(study, out), pd.read_csv(out / "table.csv"), out


def _row(table: pd.DataFrame, x: float) -> pd.Series:
    """The nodule whose middle column is x: RAS, so the sign of LPS x changes."""
    return table.loc[(table["center_x_mm"] - -(_ORIGIN[0] + _SPACING[0] * x)).abs().idxmin()]


def test_each_nodule_is_one_row_whoever_split_it(imported):
    summary, table, _ = imported
    assert len(table) == 3
    assert table["readers"].tolist() == [4, 4, 4]
    assert (summary.benign, summary.malignant, summary.scans, summary.patients) == (2, 1, 1, 1)
    assert set(table["patient"]) == {"LIDC-IDRI-9001"}
    assert set(table["seriesuid"]) == {_SERIES}


def test_ratings_are_median_and_mean_over_readers_and_parts_count_once(imported):
    _, table, _ = imported
    agreed, split = _row(table, 11.5), _row(table, 27)
    assert (agreed["malignancy_median"], agreed["malignancy_mean"], agreed["label"]) == (4, 4, 1)
    # Readers: 1, 2, mean(1, 3) = 2, mean(2, 2) = 2.
    assert (split["malignancy_median"], split["malignancy_mean"], split["label"]) == (2, 1.75, 0)
    assert split["subtlety"] == split["internal_structure"] == 3


def test_the_mask_holds_what_half_of_the_readers_outlined_and_not_the_lines(imported):
    _, table, out = imported
    row = _row(table, 11.5)
    labels = np.asarray(nibabel.load(out / row["mask"]).dataobj)
    expected = np.zeros(_SHAPE, bool)
    # Three outlined columns 9 to 14, one 9 to 15.
    expected[9:15, 7:13, 2:5] = True
    assert np.array_equal(labels == row["label_value"], expected)
    split = _row(table, 27)
    both = np.zeros(_SHAPE, bool)
    # Votes between the parts: 2 of 4.
    both[21:34, 7:12, 3] = True
    assert np.array_equal(labels == split["label_value"], both)


def test_a_hole_of_three_readers_is_cut_out(imported):
    _, table, out = imported
    row = _row(table, 12.5)
    row = table[(table["center_y_mm"] - -(_ORIGIN[1] + _SPACING[1] * 26.5)).abs() < 0.5].iloc[0]
    labels = np.asarray(nibabel.load(out / row["mask"]).dataobj) == row["label_value"]
    expected = np.zeros(_SHAPE, bool)
    expected[9:17, 23:31, 4] = True
    expected[12:14, 26:28, 4] = False
    assert np.array_equal(labels, expected)


def test_centers_sizes_and_volumes_are_in_millimetres(imported):
    _, table, _ = imported
    row = _row(table, 11.5)
    x, y, z = 11.5 * 0.7 - 20, 9.5 * 0.7 - 30, 100 + 3 * 2.5
    np.testing.assert_allclose([row["center_x_mm"], row["center_y_mm"], row["center_z_mm"]], [-x, -y, z], atol=1e-3)
    assert row["mask_ml"] == pytest.approx(6 * 6 * 3 * 0.7 * 0.7 * 2.5 / 1000, abs=1e-4)
    assert row["diameter_mm"] == pytest.approx(np.hypot(5, 5) * 0.7 + 0.7, abs=0.01)


def test_the_table_is_one_that_dagman_reads_with_masks_on_the_grid_of_the_dicom(imported):
    _, _, out = imported
    read = read_table(out / "table.csv", label="label")
    assert read.classes == ("0", "1")
    for item in read.items:
        scan = read_scan(item.scan)
        mask = load_mask(item, scan)
        assert scan.shape == _SHAPE
        center = scan.affine.to_world(np.argwhere(mask).mean(0)[None])[0]
        np.testing.assert_allclose(center, item.center_mm, atol=1e-3)


def test_what_is_left_out_is_listed_with_its_reason(imported):
    summary, _, out = imported
    reasons = " | ".join(one.reason for one in summary.left_out)
    assert "median malignancy 3.5 is in neither range" in reasons
    assert "its series is missing (9.9.9)" in reasons
    assert "holds no reading of a CT" in reasons
    assert "cannot be read as XML" in reasons
    # The copy in the archive of XML says the same, and is no second reading.
    assert "differs from" not in reasons
    assert len(pd.read_csv(out / "left_out.csv")) == len(summary.left_out)
    assert (summary.small, summary.others) == (1, 1)


def test_the_stricter_classes_leave_out_the_middle(study, tmp_path):
    summary = import_lidc(study, tmp_path / "strict", benign=(1, 2), readers=4)
    assert (summary.benign, summary.malignant) == (1, 1)
    reasons = [one.reason for one in summary.left_out]
    assert any("median malignancy 3 is in neither range" in reason for reason in reasons)
    assert any("outlined by 2 of the 4 readers required" in reason for reason in reasons)


def test_an_outline_beyond_its_slice_costs_only_its_scan(tmp_path):
    _write_series(tmp_path / "in" / "good")
    (tmp_path / "in" / "good.xml").write_text(_message(_sessions()))
    _write_series(tmp_path / "in" / "bad", series="1.2.9", patient="LIDC-IDRI-9002")
    wrong = _nodule("far", 5, _roi(_box(40, 60, 5, 9), 3, series="1.2.9"))
    (tmp_path / "in" / "bad.xml").write_text(_message([wrong], series="1.2.9"))
    summary = import_lidc(tmp_path / "in", tmp_path / "out")
    assert summary.scans == 1
    assert any("extends beyond its slice" in one.reason for one in summary.left_out)


def test_a_folder_without_readers_is_refused(tmp_path):
    _write_series(tmp_path / "series")
    with pytest.raises(TableError, match="1 series and 0 XML files of readers, but none that match"):
        import_lidc(tmp_path, tmp_path / "out")


def test_readers_files_that_cannot_be_read_are_not_called_absent(tmp_path):
    _write_series(tmp_path / "in")
    (tmp_path / "in" / "torn.xml").write_text(_message(_sessions())[:-40])
    with pytest.raises(TableError, match=r"but none that match; 1 XML file was refused, the first: .*torn\.xml: "):
        import_lidc(tmp_path / "in", tmp_path / "out")
    assert "torn.xml" in (tmp_path / "out" / "left_out.csv").read_text()


def test_ranges_that_overlap_are_refused(tmp_path):
    with pytest.raises(TableError, match="are not two separate ranges of malignancy"):
        import_lidc(tmp_path, tmp_path / "out", benign=(1, 4))


@pytest.mark.journey
def test_the_command_writes_the_table_and_says_what_it_left_out(study, tmp_path):
    command = [sys.executable, "-m", "dagman", "import", "lidc", str(study), "--out", str(tmp_path / "out"), "--benign", "1-2"]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    said = json.loads(run.stdout)
    assert (said["benign"], said["malignant"], said["small_marks"]) == (1, 1, 1)
    assert json.loads((tmp_path / "out" / "command.json").read_text())["settings"]["benign"] == [1, 2]
    wrong = subprocess.run([*command[:-1], "low"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "dagman: --benign is 'low'. Give a range of malignancies from 1 to 5, such as 1-3."


_READING = f"<LidcReadMessage><SeriesInstanceUid>{_SERIES}</SeriesInstanceUid>{{}}</LidcReadMessage>"


def _grow(levels: int) -> str:
    """A document whose entities would unpack to ten to the power of `levels` signs."""
    names = [chr(ord("a") + level) for level in range(levels)]
    first = f'<!ENTITY {names[0]} "{10 * "x"}">'
    rest = "".join(f'<!ENTITY {name} "{10 * f"&{before};"}">' for before, name in itertools.pairwise(names))
    return f"<!DOCTYPE LidcReadMessage [{first}{rest}]>{_READING.format(f'&{names[-1]};')}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_grow(9), "DOCTYPE"),
        # Small enough that the parser itself would let it pass.
        (_grow(2), "DOCTYPE"),
        ('<!DOCTYPE l [<!ENTITY other SYSTEM "{place}">]>' + _READING.format("&other;"), "DOCTYPE"),
        ('<!DOCTYPE l SYSTEM "{place}">' + _READING.format(""), "DOCTYPE"),
        ('<!DOCTYPE l [<!ENTITY % other SYSTEM "{place}"> %other;]>' + _READING.format(""), "DOCTYPE"),
        (_READING.format("&other;"), "undefined entity"),
        (_READING.format(200_000 * "<a>" + 200_000 * "</a>"), "more than 32 deep"),
        (_READING.format(200_000 * "<a>"), "more than 32 deep"),
    ],
)
def test_xml_that_grows_leads_elsewhere_or_goes_deep_is_refused_by_the_parser(tmp_path, text, reason):
    (tmp_path / "secret.txt").write_text("SECRET")
    path = tmp_path / "reading.xml"
    path.write_text(text.replace("{place}", (tmp_path / "secret.txt").as_uri()))
    with pytest.raises(TableError, match=reason) as caught:
        read_message(path)
    assert "SECRET" not in str(caught.value)


def test_a_plain_reading_passes_the_same_parser_as_deep_as_it_may_go(tmp_path):
    path = tmp_path / "reading.xml"
    path.write_text(_READING.format((MAX_DEPTH - 1) * "<a>" + (MAX_DEPTH - 1) * "</a>"))
    message = read_message(path)
    assert message is not None
    assert message.series_uid == _SERIES
