"""The verdict tells Hounsfield units from other numbers by values alone, and says what to do about the others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dagman.scans.affine import Affine
from dagman.scans.nifti import read_nifti
from dagman.scans.reading import read_scan
from dagman.scans.scan import Scan, narrow_voxels
from dagman.scans.verdict import clip_evidence, clip_padding, judge_modality, judge_scan, measure_hu


def scan_of(values, modality=None) -> Scan:
    voxels = narrow_voxels(np.asarray(values))
    modality = modality or judge_modality(measure_hu(voxels))
    return Scan(voxels=voxels, affine=Affine(np.eye(4)), modality=modality, patient="p", source="s")


def rng():
    return np.random.default_rng(0)


SOFT = np.concatenate([rng().normal(-100, 15, 4000), rng().normal(50, 15, 8000)]).reshape(20, 20, 30).round()


def grainy(mean, spread, shape):
    """Numbers whose neighbours are alike, as a scanner's are: its noise is blurred with its image."""
    noise = gaussian_filter(rng().normal(size=shape), 0.7)
    return (mean + noise / noise.std() * spread).round()


LUNG = grainy(-850, 40, (20, 20, 20))
LUNG[9:11, 9:11] = -50
"A vessel."


@pytest.mark.parametrize("values", [SOFT, LUNG, SOFT.astype(np.float32) + 0.25])
def test_ct_is_accepted_with_air_or_with_fat_alone(values):
    scan = scan_of(values)
    assert scan.modality == "CT"
    assert judge_scan(scan).accepted


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.clip(np.abs(SOFT) + 100, 0, 255), "pass --modality mr if it is MR, otherwise give the scan in HU"),
        (rng().normal(400, 90, (20, 20, 20)).clip(0), "pass --modality mr if it is MR, otherwise give the scan in HU"),
        (rng().random((20, 20, 20)), "appears to be rescaled already; give the scan in HU"),
        (rng().integers(0, 5, (20, 20, 20)), "appears to be a label map; give it as a mask, not as a scan"),
        (np.full((5, 5, 5), 7), "all voxels are 7: exclude it, or export it again"),
        (np.concatenate([LUNG, SOFT[:, :, :20]]) + 1024, "appears to hold raw values, 1024 too high"),
    ],
)
def test_what_is_not_hu_is_refused_with_advice(values, text):
    verdict = judge_scan(scan_of(values))
    assert not verdict.accepted
    assert text in verdict.reason


@pytest.mark.parametrize("highest", [1, 40, 900])
def test_labels_given_as_mr_are_refused(highest):
    labels = np.zeros((24, 24, 24))
    labels[4:12, 4:20, 4:20], labels[12:20, 4:20, 4:20] = highest, (highest + 1) // 2
    assert judge_scan(scan_of(labels, "MR")).reason == "appears to be a label map; give it as a mask, not as a scan"


def test_mr_of_8_bits_without_its_skull_is_no_label_map():
    brain = rng().normal(120, 30, (24, 24, 24)).clip(1, 255).round()
    brain[:6], brain[-6:] = 0, 0
    assert judge_scan(scan_of(brain, "MR")).accepted


def test_raw_values_are_noticed_behind_padding():
    raw = np.concatenate([LUNG, SOFT[:, :, :20]]) + 1024
    raw[:3] = -2000
    verdict = judge_scan(scan_of(raw, "CT"))
    assert "appears to hold raw values, 1024 too high" in verdict.reason


@pytest.mark.parametrize("modality", [None, "CT"])
def test_hu_with_the_sign_flipped_are_refused(modality):
    chest = np.concatenate([LUNG, SOFT[:, :, :20]])
    chest[:4, :4] = 1000 * rng().random((4, 4, 20))
    chest[-4:] = -1024
    assert judge_scan(scan_of(chest, modality)).accepted
    refused = judge_scan(scan_of(-chest, modality))
    assert not refused.accepted
    assert "appears to hold HU with the sign flipped" in refused.reason
    assert refused.reason.endswith("air at the high end): multiply by -1")


def test_mr_up_to_a_thousand_is_not_called_flipped():
    mr = np.concatenate([rng().normal(780, 40, (10, 20, 20)), rng().normal(200, 60, (10, 20, 20))]).clip(0, 1082).round()
    assert not measure_hu(mr).is_negated
    assert "--modality mr" in judge_scan(scan_of(mr)).reason


def test_a_crop_of_bone_or_metal_without_air_is_not_called_flipped():
    bone = np.concatenate([rng().normal(1100, 250, (10, 20, 20)), SOFT[:, :, :20]]).round()
    assert not measure_hu(bone).is_negated
    assert judge_scan(scan_of(bone, "CT")).accepted


@pytest.mark.parametrize("modality", [None, "CT"])
@pytest.mark.parametrize("padding", [-2000, -3024])
def test_flipped_hu_are_refused_with_their_padding_too(modality, padding):
    body = np.concatenate([rng().normal(-1000, 20, (8, 20, 30)), SOFT])
    body[:, :3] = padding
    assert judge_scan(scan_of(np.maximum(body, -1024), modality)).accepted
    assert "appears to hold HU with the sign flipped" in judge_scan(scan_of(-body, modality)).reason


def test_flipped_hu_with_little_air_are_refused():
    thigh = np.concatenate([rng().normal(-1000, 20, (2, 20, 30)), SOFT])
    assert judge_scan(scan_of(thigh)).accepted
    assert "appears to hold HU with the sign flipped" in judge_scan(scan_of(-thigh)).reason


def test_ct_clipped_at_a_thousand_is_accepted_with_bone_or_metal_in_it():
    bone = np.concatenate([rng().uniform(150, 1200, (16, 20, 30)), SOFT]).clip(-200, 1000)
    assert measure_hu(bone).highest_share > 0.1
    metal = np.copy(SOFT).clip(-200, 1000)
    metal[8:12, 5:15, :] = 1000
    for crop in (bone, metal):
        assert judge_scan(scan_of(crop)).accepted
        assert judge_scan(scan_of(crop, "CT")).accepted


def test_ct_padded_with_a_thousand_is_accepted_when_the_user_says_ct():
    padded = np.copy(SOFT)
    padded[:, :6] = 1000
    assert judge_scan(scan_of(padded, "CT")).accepted


def test_a_crop_inside_one_organ_needs_a_tag_or_a_word():
    liver = grainy(60, 25, (20, 20, 20))
    assert not judge_scan(scan_of(liver)).accepted
    assert judge_scan(scan_of(liver, "CT")).accepted


def test_mr_is_taken_at_its_word_unless_it_is_empty():
    values = rng().normal(400, 90, (20, 20, 20)).clip(0)
    assert judge_scan(scan_of(values, "MR")).accepted
    assert not judge_scan(scan_of(np.zeros((5, 5, 5)), "MR")).accepted


def test_hu_under_another_name_need_a_word():
    assert "pass --modality ct if it is CT" in judge_scan(scan_of(SOFT, "other")).reason


@pytest.mark.parametrize(("spacing", "text"), [(0.0008, "is 0.016 mm long"), (800.0, "is 1.6e+04 mm long")])
def test_a_spacing_in_another_unit_is_noticed(spacing, text):
    voxels = np.full((20, 20, 20), -1000, np.int16)
    voxels[5:15] = 40
    scan = Scan(voxels=voxels, affine=Affine(np.diag([spacing, spacing, spacing, 1])), modality="CT", patient="p", source="s")
    assert judge_scan(scan).reason == f"{text}, so its spacing cannot be in mm: correct the header"


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_absurd_spacing_along_one_axis_is_noticed(modality):
    scan = Scan(voxels=SOFT.astype(np.int16), affine=Affine(np.diag([1, 1e-9, 1, 1])), modality=modality, patient="p", source="s")
    assert judge_scan(scan).reason == "its voxels are 1e-09 mm apart along one axis: correct the header"


def test_numbers_that_no_scanner_writes_are_not_hu():
    voxels = np.full((20, 20, 20), -1000.0, np.float32)
    voxels[5:15] = 40
    assert judge_modality(measure_hu(voxels)) == "CT"
    voxels[10] = 3e6
    assert judge_modality(measure_hu(voxels)) == "other"


def test_few_slices_are_noted():
    assert judge_scan(scan_of(SOFT[:, :, :3], "CT")).notes == ("very thin: 3 slices",)


def test_clip_padding_changes_what_is_below_1024_alone_and_says_so():
    values = np.array([[[-3024, -1024, -1023, 500]]], dtype=np.int16)
    clipped, notes = clip_padding(values)
    assert clipped.tolist() == [[[-1024, -1024, -1023, 500]]]
    assert clipped.dtype == np.int16
    assert notes == ("values down to -3024 in 1 of 4 voxels were set to -1024 HU",)
    assert clip_padding(clipped) == (clipped, ())


def test_evidence_is_shares_of_voxels():
    values = np.array([-1000.0, -400, -100, 0, 100, 250, 1000, 1100]).reshape(2, 2, 2)
    evidence = measure_hu(values)
    assert (evidence.minimum, evidence.maximum) == (-1000, 1100)
    assert evidence.air_share == 2 / 8
    assert evidence.fat_share == 1 / 8
    assert evidence.soft_tissue_share == 4 / 8
    assert evidence.raw_tissue_share == pytest.approx(2 / 3)


def test_real_scans_are_judged_right(data):
    accepted = ["organs/scans/totalseg-body.nii.gz", "organs/scans/totalseg-aorta.nii.gz", "other-ct/totalseg-pulmonary.nii.gz"]
    accepted += [str(path.relative_to(data)) for path in sorted((data / "sarcoma-ct" / "scans").iterdir())[:6]]
    accepted += [str(path.relative_to(data)) for path in sorted((data / "lidc-nodules" / "scans").iterdir())[::20]]
    for name in accepted:
        scan = read_scan(data / name)
        assert scan.modality == "CT", name
        assert judge_scan(scan).accepted, name
    for name in ["other-ct/CT_pitch.nii.gz", "mr/stroke-T1.nii.gz", "mr/totalseg-mr.nii.gz", "mr/CMB-CRC-T2.nii.gz"]:
        assert "not in HU" in judge_scan(read_scan(data / name)).reason, name
    for name in ["organs/masks/totalseg-body.nii.gz", "mr/totalseg-mr_labels.nii.gz"]:
        assert "appears to be a label map" in judge_scan(read_scan(data / name)).reason, name
        assert "appears to be a label map" in judge_scan(read_scan(data / name, modality="MR")).reason, name
    for name in ["mr/stroke-T1.nii.gz", "mr/totalseg-mr.nii.gz", "mr/CMB-CRC-T2.nii.gz"]:
        assert judge_scan(read_scan(data / name, modality="MR")).accepted, name


def test_real_ct_is_refused_once_its_sign_is_flipped(data):
    names = ["other-ct/CRLM-CT-1006", "other-ct/totalseg-pulmonary", "organs/scans/totalseg-body", "sarcoma-ct/scans/STS_044"]
    for name in names:
        # The padding as the file has it: read_scan would clip it before it is flipped.
        flipped = narrow_voxels(-read_nifti(data / f"{name}.nii.gz").values.astype(np.int32))
        for modality in (None, "CT"):
            assert "appears to hold HU with the sign flipped" in judge_scan(scan_of(flipped, modality)).reason, name


def test_padding_down_to_3024_is_clipped_and_the_scan_accepted(data):
    scan = read_scan(data / "other-ct" / "CRLM-CT-1006.nii.gz")
    assert scan.voxels.min() == -1024
    assert "values down to -3024" in scan.notes[0]
    assert judge_scan(scan).accepted


@pytest.mark.parametrize("order", ["C", "F"])
def test_padding_is_clipped_without_a_second_copy_of_the_scan(order):
    values = np.full((4, 5, 6), -3024, np.int16, order=order)
    values[1] = 40
    clipped, (note,) = clip_padding(values[:, ::-1])
    assert np.shares_memory(clipped, values)
    assert sorted(set(values.ravel().tolist())) == [-1024, 40]
    assert note == "values down to -3024 in 90 of 120 voxels were set to -1024 HU"


def test_voxels_that_may_not_be_written_are_clipped_in_a_copy():
    values = np.full((4, 5, 6), -3024, np.int16)
    values.setflags(write=False)
    clipped, _ = clip_padding(values)
    assert (values == -3024).all()
    assert (clipped == -1024).all()


@pytest.mark.parametrize("modality", [None, "CT"])
@pytest.mark.parametrize(
    "air", [rng().normal(-1000, 15, (30, 30, 20)).clip(-1024), grainy(-1000, 30, (30, 30, 20)), grainy(-990, 60, (30, 30, 20))]
)
def test_air_alone_is_not_a_scan(air, modality):
    assert judge_scan(scan_of(air.round(), modality)).reason == "contains only air (no voxels of tissue): exclude it"


@pytest.mark.parametrize("modality", [None, "CT"])
@pytest.mark.parametrize(
    "noise",
    [
        rng().normal(0, 100, (30, 30, 20)),
        rng().normal(0, 400, (30, 30, 20)),
        rng().uniform(-1000, 1000, (30, 30, 20)),
        rng().permutation(np.concatenate([LUNG, SOFT[:, :, :20]]).ravel()).reshape(40, 20, 20),
    ],
)
def test_noise_is_not_a_scan_whatever_its_range(noise, modality):
    reason = judge_scan(scan_of(noise.round(), modality)).reason
    assert reason.startswith("is noise, neighbouring voxels are uncorrelated (correlation ")


@pytest.mark.parametrize(("voxels", "accepted"), [(100, True), (2400, False)])
def test_numbers_above_any_tissue_are_noted_and_refused_where_they_are_many(voxels, accepted):
    values = np.copy(SOFT)
    values.reshape(-1)[-voxels:] = 9000
    verdict = judge_scan(scan_of(values, "CT"))
    assert verdict.accepted is accepted
    text = "0.8% of the voxels are above 4000 HU (metal?)" if accepted else "20.0% of its voxels are above 4000 HU, more than"
    assert text in "; ".join((*verdict.notes, verdict.reason))


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_evidence_counted_before_padding_is_clipped_holds_after(kind):
    values = grainy(-900, 300, (30, 30, 30)).round()
    values[:4] = -3024
    values[-4:] = 60
    before = measure_hu(values.astype(kind))
    assert clip_evidence(before) == measure_hu(clip_padding(values.astype(kind))[0])
    assert before.minimum == -3024
    nothing_else = np.full((4, 4, 4), -2000, kind)
    assert clip_evidence(measure_hu(nothing_else)) == measure_hu(clip_padding(nothing_else)[0])
