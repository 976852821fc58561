"""Proves that the pages of tasks say what is bad, on how many patients, and where a picture is no anatomy."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from dagman.evaluation.results import Measurement
from dagman.evaluation.statistics import Interval
from dagman.reports.figures.scatter import choose_mark, place_labels
from dagman.reports.hover_map import MapPoint, render_hover_map
from dagman.reports.page import Embedded, Text, Verdict
from dagman.reports.tasks.examples import describe_beyond
from dagman.reports.tasks.segmentation_verdicts import format_measure, format_measurement, judge_structures
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.store.crops import CropShape, cut_crop, measure_reach
from dagman.tasks.inputs.examples import Example

_GOOD = {"dice": 0.912, "hd95_mm": 3.0, "false_positives": 0.2, "volume_bias_ml": 1.0}


def _measure(name: str, value: float, low: float = 0.1, high: float = 0.95) -> Measurement:
    interval = Interval(value=value, low=low, high=high, level=0.95, items=6, patients=4, how="BCa bootstrap over patients")
    return Measurement(name=name, model="run", method="finetune", interval=interval)


def _judge(values: dict[str, dict[str, float]], rows: pd.DataFrame | None = None) -> list:
    measured = [_measure(f"{name}:{structure}", value) for structure, held in values.items() for name, value in held.items()]
    if rows is None:
        rows = pd.DataFrame([{"item": "a", "label": name, "dice": 0.9, "true_volume_ml": 50.0} for name in values])
    return judge_structures(measured, rows, list(values), model="run", subset="100%")


def test_structures_are_judged_by_name_the_worst_first_with_how_many_scans():
    blocks = _judge({"liver": _GOOD, "spleen": _GOOD | {"dice": 0.41}, "heart": _GOOD | {"dice": 0.7}})
    verdicts = [block for block in blocks if isinstance(block, Verdict)]
    assert [(one.level, one.text.partition(":")[0]) for one in verdicts] == [
        ("bad", "**spleen**"),
        ("warn", "**heart**"),
        ("ok", "**liver**"),
    ]
    assert verdicts[-1].text == "**liver**: Dice 0.912 (0.100 to 0.950) over 6 scans of 4 patients."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hd95_mm": 31.26}, "HD95 31.3 mm"),
        ({"false_positives": 2.4}, "2.40 false-positive components per scan"),
        ({"volume_bias_ml": -20.0}, "volumes 40% too small on average (-20.0 of 50.0 ml)"),
        ({"hd95_mm": float("nan"), "false_positives": float("nan")}, None),
    ],
)
def test_a_good_overlap_hides_nothing_that_is_bad_beside_it(change, said):
    verdict = _judge({"liver": _GOOD | change})[0]
    assert verdict.level == ("ok" if said is None else "warn")
    assert said is None or said in verdict.text


def test_structures_missed_as_a_whole_are_counted_and_those_in_no_scan_are_named():
    rows = pd.DataFrame(
        [
            {"item": item, "label": "liver", "dice": dice, "true_volume_ml": true}
            for item, dice, true in (("a", 0.0, 9.0), ("b", 0.95, 11.0), ("c", float("nan"), 0.0))
        ]
    )
    blocks = _judge({"liver": _GOOD, "cyst": {"dice": float("nan")}}, rows)
    assert "missed entirely in 1 of 2 scans" in blocks[0].text
    assert any(isinstance(block, Text) and "No test scan contains `cyst`" in block.text for block in blocks)


def test_a_measure_has_the_same_decimals_everywhere():
    assert [format_measure("hd95_mm", value) for value in (3.0, 12.345, float("inf"), float("nan"))] == ["3.0", "12.3", "∞", "–"]
    assert [format_measure("dice:liver", value) for value in (0.9, 1.0, None)] == ["0.900", "1.000", "–"]
    assert format_measurement(_measure("dice", 0.9, float("nan"), float("nan"))) == "0.900"


def test_what_of_a_crop_is_scan_is_where_the_crop_is_not_mirrored():
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 100, (40, 50, 30)).astype(np.int16)
    affine = Affine(np.array([[1.0, 0, 0, -7], [0, 1, 0, 3], [0, 0, 2, 11], [0, 0, 0, 1]]))
    scan = Scan(voxels=voxels, affine=affine, modality="CT", patient="p", source="s")
    center, shape = (-7 + 35, 3 + 25, 11 + 4), CropShape(32, 1.0)
    within = measure_reach(scan, center, shape)
    # Voxels 19 to 50 of 40 along X; all along Y; -11.5 to 19.5 mm from the first voxel of 2 mm along Z.
    assert within[0] == pytest.approx((0, 39.5 - 35 + 16))
    assert within[1] == pytest.approx((0, 32))
    assert within[2] == pytest.approx((16 - 4 - 1, 32))
    # Beyond the scan's last voxel the crop repeats it, and then those before.
    center = (-7 + 35.5, 3 + 25.5, 11 + 29)
    crop, last = cut_crop(scan, center, *shape), int(measure_reach(scan, center, shape)[0][1])
    assert (crop[last:] == crop[last - 1 : 2 * last - 33 : -1]).all()
    assert not (crop[last] == crop[last - 2]).any()


def _example(within) -> Example:
    block = np.zeros((8, 8, 8), np.int16)
    return Example(
        name="n", kind="most certain, right", label="1", predicted="1", probability=0.9, spacing=2.0, modality="CT",
        voxels=block, inside=block == 0, attention=None, patient="p", file="f.nii.gz", within=within,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("within", "said"),
    [
        (None, ""),
        (((0, 8), (0.4, 8), (0, 8)), ""),
        (((0, 6), (0, 8), (3, 8)), "4 mm to the patient's right, 6 mm below"),
    ],
)
def test_how_far_a_crop_goes_beyond_its_scan_is_said_with_the_side(within, said):
    assert describe_beyond(_example(within)) == said


def test_31_kinds_differ_in_colour_or_mark_and_neighbours_in_both():
    marks = [choose_mark(code) for code in range(31)]
    assert len(set(marks)) == 31
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in pairwise(marks))
    assert choose_mark(-1)[0] not in {color for color, _ in marks}


def test_names_stand_at_their_clusters_and_never_on_one_another():
    points = np.repeat([[0.0, 0.0], [0.5, 0.1], [0.0, -0.05], [90.0, 0.0]], 5, axis=0)
    places = place_labels(points, np.repeat([0, 1, 2, 3], 5), 1.0)
    assert places[2] == (0.0, 0.95), "above its points"
    assert places[3] == (90.0, 1.0), "far from the others"
    heights = sorted(places[code][1] for code in (0, 1, 2))
    assert min(np.diff(heights)) >= 1.0 - 1e-9


def test_a_map_names_each_kind_where_it_lies_and_its_script_is_one_that_may_run():
    points = [MapPoint(x=code, y=code % 3, code=code % 2, name=f"n{code}", lines=()) for code in range(6)]
    block = Embedded(render_hover_map(points, ["liver", "</script>"], None, name="map-0"))
    assert re.findall(r'<text class="name"[^>]*>([^<]*)</text>', block.html) == ["liver", "&lt;/script&gt;"]
    assert len(block.scripts) == 1
    assert block.scripts[0].endswith(");")
