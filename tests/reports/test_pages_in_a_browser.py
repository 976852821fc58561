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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dagman.encoder.attention import Attention
from dagman.encoder.tiling import Tiling
from dagman.reports.page import DataTable, Figure, FigureGrid, Section, render_page
from dagman.reports.viewer import coarsen_affine, place_units, render_viewer
from dagman.reports.volumes import Layer, Volume
from dagman.scans.affine import Affine
from dagman.scans.scan import Scan
from dagman.store.preparation import PreparedScan

_OPTIONS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"]
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
    attention = _make_attention(scan)
    # The third unit along X covers padded voxels 32 to 47: 30 to 45 of the scan, whose middle is 37.5; and so on.
    assert place_units(attention).to_world([_BLOB])[0] == pytest.approx(_AFFINE.to_world([[37.5, 16.5, 6.5]])[0])


def test_blocks_of_voxels_keep_their_place():
    coarse = coarsen_affine(_AFFINE, (2, 1, 3))
    assert coarse.to_world([[0, 4, 1]])[0] == pytest.approx(_AFFINE.to_world([[0.5, 4, 4]])[0])


def test_the_viewer_reads_hu_and_attention_where_they_lie_and_follows_the_keys(browse, scan):
    run = browse(render_viewer(scan, title="one </script> scan", attention=_make_attention(scan)))
    for voxel in ((11, 40, 22), (50, 3, 7)):
        point = _AFFINE.to_world([voxel])[0].tolist()
        reading = run("dagmanViewer.go(...arguments); return dagmanViewer.reading", *point)
        assert reading["mm"] == pytest.approx(point, abs=1e-3)
        assert reading["value"] == scan.voxels[voxel]
    point = place_units(_make_attention(scan)).to_world([_BLOB])[0]
    inside, beside = (
        run("dagmanViewer.go(...arguments); return dagmanViewer.reading.over", *(point + np.array([shift, 0, 0])).tolist())
        for shift in (0.0, 2.0 * _STRIDE)
    )
    assert (inside, beside) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.0, abs=0.02)), "the mean of 1.5 and 1, less 1"
    run("dagmanViewer.go(...arguments)", *_AFFINE.to_world([[20, 20, 10]])[0].tolist())
    run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'PageUp', bubbles: true}))")
    assert run("return dagmanViewer.reading.value") == scan.voxels[20, 20, 11]
    assert "HU, attention 1.000 times uniform" in run("return document.querySelector('.place').textContent")
    assert run("return dagmanViewer.nv.opts.isRadiologicalConvention")
    assert run(_LOADED) == 0
