"""Proves in headless Chromium that pages and the viewer run from a file, load nothing, and show what they hold where it lies.

Needs Chromium; one start serves all tests of this file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dagman.encoder.attention import Attention
from dagman.encoder.tiling import Tiling
from dagman.errors import ScanError
from dagman.reports.page import DataTable, Figure, FigureGrid, Section, render_page
from dagman.reports.viewer import Exhibit, LabelLayer, coarsen_affine, place_attention, render_viewers
from dagman.reports.viewer.layers import describe_labels
from dagman.reports.volumes import Layer, Volume
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.store.preparation import PreparedScan
from dagman.tables.marks import Mark

_OPTIONS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=800,600"]
_OPTIONS += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
_WAIT = """return new Promise(done => (function ask() {
    document.documentElement && document.documentElement.dataset.ready ? done(1) : setTimeout(ask, 50); })())"""
_LOADED = "return performance.getEntriesByType('resource').filter(one => !one.name.startsWith('data:')).length"

_HEADS, _STRIDE, _BLOB = 2, 16, (2, 1, 0)
_AFFINE = Affine(np.array([[2.0, 0, 0, -60], [0, 2, 0, -50], [0, 0, 3, 100], [0, 0, 0, 1]]))


class _Browser:
    """Chromium, asked through two pipes (--remote-debugging-pipe): messages are JSON, ended by a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        (reads, self._ask), (self._answers, writes) = os.pipe(), os.pipe()
        options = [*_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        command = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", program, *options]
        self._process = subprocess.Popen(
            command, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(reads)
        os.close(writes)
        self._number, self._rest, self._session = 0, b"", {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        os.write(self._ask, json.dumps({"id": self._number, "method": method, "params": params} | self._session).encode() + b"\0")
        while True:
            message, found, rest = self._rest.partition(b"\0")
            if not found:
                read = os.read(self._answers, 1 << 20)
                assert read, "the browser is gone"
                self._rest += read
                continue
            self._rest, answer = rest, json.loads(message)
            if answer.get("id") == self._number:
                return answer["result"]

    def run(self, script: str, *given: Any) -> Any:
        """What a function's body returns, or what its promise gives."""
        call = f"(function () {{ {script} }}).apply(null, {json.dumps(given)})"
        answer = self.call("Runtime.evaluate", expression=call, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ask)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browse(tmp_path_factory) -> Iterator[Callable[[str], Callable[..., Any]]]:
    """Open a page's HTML from a file; gives what runs a script in it."""
    program = shutil.which("chromium")
    if not program:
        pytest.skip("needs chromium")
    folder: Path = tmp_path_factory.mktemp("pages")
    browser = _Browser(program, folder / "profile")

    def open_page(html: str) -> Callable[..., Any]:
        path = folder / "page.html"
        path.write_text(html, encoding="utf-8")
        browser.call("Page.navigate", url=path.as_uri())
        browser.run(_WAIT)
        return browser.run

    yield open_page
    browser.close()


def _draw_ramp(shape: tuple[int, int, int]) -> np.ndarray:
    x, y, z = np.indices(shape)
    return (x * 13 - y * 7 + z * 5 - 300).astype(np.int16)


@pytest.fixture(scope="module")
def page() -> str:
    voxels = np.zeros((32, 32, 32), np.int16)
    voxels[:, :, 20] = 1000
    volume = Volume(
        voxels=voxels, spacing=(1, 1, 1), still=b"", caption="c", alt="a", title="t", window=(-160, 240), hounsfield=True,
        layers=[Layer(codes=(voxels > 0).astype(np.uint8), names=["plate"], colors=["#00ff00"])],
    )  # fmt: skip
    rows = [[name, "x" * 400] for name in ("liver", "spleen", "heart")]
    table = DataTable(["name", "long"], rows, filtered=True)
    return render_page("P", "l", [Section("One", [volume, table, FigureGrid([Figure(b"", "liver", "i")], narrow=True)])])


def test_a_page_is_stepped_through_windowed_and_filtered_and_never_wider_than_the_screen(browse, page):
    run = browse(page)
    assert run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert run("return document.querySelectorAll('.volume canvas').length") == 3
    run("document.querySelector('.volume button').click()")
    middle = """const canvas = document.querySelector('dialog canvas'), c = canvas.getContext('2d');
        return c.getImageData(canvas.width / 3, canvas.height / 3, 1, 1).data[0]"""
    press = (
        "for (let i = 0; i < 4; i++) document.querySelector('dialog').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowUp'}))"
    )
    before = run(middle)
    run(press)
    assert (before, run(middle)) == (pytest.approx(255 * 160 / 400, abs=2), 255), "slice 16 holds 0 HU, slice 20 1000 HU"
    assert "slice 21 of 32" in run("return document.querySelector('dialog .words').textContent")
    run("document.querySelector('dialog').close(); document.querySelectorAll('.bar button')[2].click()")
    assert run("return document.querySelector('.volume').volume.state.window") == [-500, 1300]
    run("const f = document.querySelector('.filter input'); f.value = 'LIV'; f.dispatchEvent(new Event('input'))")
    assert run("return [...document.querySelectorAll('tbody tr')].map(row => row.hidden)") == [False, True, True]
    assert run(_LOADED) == 0


def _make_attention(scan: Scan) -> Attention:
    prepared = PreparedScan(
        voxels=scan.voxels, affine=scan.affine, modality="CT", crop_box=((0, 0, 0), scan.shape), scale=None,
        content_hash="", patient="p", source="s",
    )  # fmt: skip
    heads = torch.ones(_HEADS, 4, 4, 2)
    heads[0][_BLOB] = 1.5
    padded, offset = (64, 64, 32), (2, 7, 1)
    tiling = Tiling(shape=scan.shape, padded=padded, offset=offset, size=padded, starts=((0, 0, 0),))
    return Attention(heads=heads, stride=_STRIDE, prepared=prepared, tiling=tiling, origin="made up")


@pytest.fixture(scope="module")
def scan() -> Scan:
    return Scan(voxels=_draw_ramp((60, 50, 30)), affine=_AFFINE, modality="CT", patient="p", source="s")


def test_units_of_attention_lie_in_the_middle_of_their_voxels(scan):
    # The third unit along X covers padded voxels 32 to 47: 30 to 45 of the scan, whose middle is 37.5; and so on.
    placed = place_attention(_make_attention(scan)).affine
    assert placed.to_world([_BLOB])[0] == pytest.approx(_AFFINE.to_world([[37.5, 16.5, 6.5]])[0])


def test_blocks_of_voxels_keep_their_place():
    coarse = coarsen_affine(_AFFINE, (2, 1, 3))
    assert coarse.to_world([[0, 4, 1]])[0] == pytest.approx(_AFFINE.to_world([[0.5, 4, 4]])[0])


def _draw_balls(balls: dict[int, tuple[tuple[float, float, float], float]]) -> Scan:
    """A label map on a grid of its own, X stored from right to left: value to centre (RAS mm) and radius (mm)."""
    affine = Affine(np.array([[-1.5, 0, 0, 55], [0, 1.5, 0, -48], [0, 0, 1.5, 102], [0, 0, 0, 1]]))
    places = affine.to_world(np.stack(np.indices((72, 62, 52)), axis=-1).reshape(-1, 3)).reshape(72, 62, 52, 3)
    voxels = np.zeros(places.shape[:3], np.int16)
    for value, (center, radius) in balls.items():
        voxels[np.linalg.norm(places - center, axis=-1) <= radius] = value
    return Scan(voxels=voxels, affine=affine, modality="other", patient="p", source="labels")


_BALLS = {3: ((-20.0, 10.0, 130.0), 12.0), 9: ((30.0, -10.0, 150.0), 9.0)}
_MARKS = (
    Mark(name="a <b> nodule", center_mm=(-20.0, 10.0, 130.0), diameter_mm=16.0),
    Mark(name="far", center_mm=(40.0, 30.0, 171.0)),
)


def test_labels_are_listed_with_their_volume_and_a_point_inside():
    described = describe_labels(LabelLayer(labels=_draw_balls(_BALLS), names={3: "liver"}), 10**6)
    assert [(one["name"], one["value"]) for one in described["structures"]] == [("liver", 3), ("label 9", 9)]
    for one, (center, radius) in zip(described["structures"], _BALLS.values(), strict=True):
        assert one["ml"] == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.03)
        assert one["point"] == pytest.approx(center, abs=1.5)
    coarse = describe_labels(LabelLayer(labels=_draw_balls(_BALLS)), 2000)["structures"]
    assert [one["ml"] for one in coarse] == [one["ml"] for one in described["structures"]], "of the whole map"
    for one, (center, _) in zip(coarse, _BALLS.values(), strict=True):
        assert one["point"] == pytest.approx(center, abs=6.0)


def test_what_is_no_label_map_is_refused_in_one_line():
    chances = Scan(voxels=np.full((2, 2, 2), 0.5, np.float32), affine=_AFFINE, modality="other", patient="p", source="chances")
    with pytest.raises(ScanError, match=r"chances: holds values that are not whole numbers\. Give a label map"):
        describe_labels(LabelLayer(labels=chances), 10**6)
    many = replace(chances, voxels=np.arange(1, 301, dtype=np.int16).reshape(10, 10, 3))
    with pytest.raises(ScanError, match="holds 300 values; 255 can be shown"):
        describe_labels(LabelLayer(labels=many), 10**6)


@pytest.fixture(scope="module")
def viewer(browse, scan) -> Callable[..., Any]:
    """The viewer with attention, two label maps and marks over the first of two scans."""
    balls = _draw_balls(_BALLS)
    exhibit = Exhibit(
        scan=scan,
        title="one </script> scan",
        attention=place_attention(_make_attention(scan)),
        labels=[
            LabelLayer(labels=balls, names={3: "liver", 9: "spleen"}, called="model"),
            LabelLayer(labels=_draw_balls({9: _BALLS[9]}), names={9: "spleen"}, called="reader"),
        ],
        marks=_MARKS,
    )
    other = Exhibit(scan=replace(scan, voxels=scan.voxels[:, :, ::-1]), title="the other", name="other")
    return browse(render_viewers("two scans", [exhibit, other]))


_READ = "return dagmanViewer.readAt(...arguments)"
_PRESS = "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
_LATER = "return new Promise(done => setTimeout(() => done(dagmanViewer.reading), 0))"


def test_the_viewer_reads_hu_and_attention_where_they_lie_and_follows_the_keys(viewer, scan):
    for voxel in ((11, 40, 22), (50, 3, 7)):
        point = _AFFINE.to_world([voxel])[0].tolist()
        reading = viewer(_READ, *point)
        assert reading["mm"] == pytest.approx(point, abs=1e-3)
        assert reading["value"] == scan.voxels[voxel]
    point = place_attention(_make_attention(scan)).affine.to_world([_BLOB])[0]
    inside, beside = (viewer(_READ, *(point + np.array([shift, 0, 0])).tolist())["attention"] for shift in (0.0, 2.0 * _STRIDE))
    assert (inside, beside) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.0, abs=0.02)), "the mean of 1.5 and 1, less 1"
    # NiiVue draws all of an overlay opaque but for this type, which fades what lies below cal_min.
    assert viewer("const one = dagmanViewer.nv.volumes[1]; return [one.colormapType, one.cal_min, one.cal_maxNeg]") == [
        1,
        0.25,
        -0.25,
    ]
    viewer(_READ, *_AFFINE.to_world([[20, 20, 10]])[0].tolist())
    viewer(_PRESS, "PageUp")
    assert viewer("return dagmanViewer.reading.value") == scan.voxels[20, 20, 11]
    assert "HU, attention 1.000 times uniform, no structure" in viewer("return document.querySelector('.place').textContent")
    assert viewer("return dagmanViewer.nv.opts.isRadiologicalConvention")
    viewer(_PRESS, "3")
    assert viewer("return [...document.querySelectorAll('[aria-pressed=true]')].map(one => one.textContent)") == ["bone"]
    assert viewer("return [dagmanViewer.nv.volumes[0].cal_min, dagmanViewer.nv.volumes[0].cal_max]") == [-500, 1300]
    assert viewer(_LOADED) == 0


def test_labels_lie_where_they_were_drawn_and_are_named_listed_and_hidden(viewer):
    # 2 mm inside and outside of the closed form's surface, along each axis.
    tried = [
        ((np.array(center) + turn * (radius + beyond) * np.eye(3)[axis]).tolist(), name if beyond < 0 else "")
        for (center, radius), name in zip(_BALLS.values(), ("liver", "spleen"), strict=True)
        for axis in range(3)
        for turn in (-1, 1)
        for beyond in (-2, 2)
    ]
    read = viewer("return arguments[0].map(point => dagmanViewer.readAt(...point).label)", [point for point, _ in tried])
    assert read == [wanted for _, wanted in tried]
    assert viewer("return [...document.querySelectorAll('[data-structure]')].map(one => one.dataset.structure)") == [
        "liver",
        "spleen",
    ]
    viewer("document.querySelectorAll('[data-structure]')[1].click()")
    assert viewer("return dagmanViewer.reading.label") == "spleen"
    viewer(_READ, *_BALLS[3][0])
    for key, wanted in (("m", ""), ("m", "liver"), ("o", None), ("o", "liver")):
        viewer(_PRESS, key)
        assert viewer(_LATER)["label"] == wanted, key


def test_marks_are_circles_of_their_size_and_are_jumped_to(viewer):
    assert viewer("return [...document.querySelectorAll('[data-mark]')].map(one => one.textContent)").count("a <b> nodule") == 1
    for key, mark in (("n", 0), ("n", 1), ("p", 0)):
        viewer(_PRESS, key)
        assert viewer("return dagmanViewer.reading.mm") == pytest.approx(_MARKS[mark].center_mm, abs=1e-3)
    circles = viewer("""const nv = dagmanViewer.nv, scale = nv.gl.canvas.clientWidth / nv.gl.canvas.width;
        return [...document.querySelectorAll('.marks circle')].map(one => {
            const tile = nv.screenSlices.find(tile => tile.axCorSag === Number(one.dataset.plane));
            const at = nv.frac2canvasPosWithTile(nv.scene.crosshairPos, tile.axCorSag).pos.map(value => value * scale);
            const pixels = Math.abs(tile.leftTopWidthHeight[2] / tile.fovMM[0]) * scale;
            const [cx, cy, r] = ['cx', 'cy', 'r'].map(name => one.getAttribute(name));
            return [cx - at[0], cy - at[1], r / pixels, tile.axCorSag]; })""")
    assert [circle[3] for circle in circles] == [0, 1, 2], "a circle in each plane"
    for circle in circles:
        assert circle[:3] == pytest.approx([0, 0, 8], abs=0.6)
    # 6 mm off the middle of a sphere of 8 mm a plane cuts a circle of 5.3 mm.
    cut = """dagmanViewer.go(...arguments); const tile = dagmanViewer.nv.screenSlices[0];
        return document.querySelector('.marks circle').getAttribute('r') / Math.abs(tile.leftTopWidthHeight[2] / tile.fovMM[0])"""
    assert viewer(cut, -20, 10, 136) == pytest.approx(8 * np.sqrt(1 - (6 / 8) ** 2), rel=0.02)


def test_the_other_scan_of_the_file_is_opened_by_its_name(viewer, scan):
    viewer("location.hash = 'other'; return dagmanViewer.open()")
    voxel = (20, 20, 4)
    assert viewer(_READ, *_AFFINE.to_world([voxel])[0].tolist())["value"] == scan.voxels[:, :, ::-1][voxel]
    assert viewer("return document.querySelector('aside').hidden"), "it has no labels and no marks"
    assert viewer("return [...document.querySelector('.bar select').options].map(one => one.textContent)") == [
        "one </script> scan",
        "the other",
    ]
    assert viewer("return document.documentElement.scrollWidth <= window.innerWidth")
