"""Proves that the viewer beside a page shows its examples where they lie, without what was mirrored, and is linked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dagman.reports.page import Links, Section, render_page
from dagman.reports.viewer.examples import exhibit_items, exhibit_scans, link_viewer, name_viewer, write_viewer
from dagman.tasks.inputs.examples import FILE

_BLOB = (1, 2, 0)


@pytest.fixture
def items(tmp_path: Path) -> Any:
    """Two items of 32^3 voxels of 2 mm; the first reaches 10 voxels to the right of its scan and 4 above it."""
    item = {"label": "1", "predicted": "1", "probability": 0.9, "words": "", "spacing": 2.0, "modality": "CT"}
    item |= {"patient": "p", "file": "f.nii.gz"}
    about = [
        item | {"name": "a", "kind": "most certain, right", "within": [[0, 22], [0, 32], [0, 28]]},
        item | {"name": "b", "kind": "most certain, right", "within": None},
    ]
    voxels = np.arange(32**3).reshape(32, 32, 32).astype(np.int16)
    inside = np.zeros((32, 32, 32), bool)
    inside[8:12, 8:12, 8:12] = True
    attention = np.ones((2, 4, 2), np.float32)
    attention[_BLOB] = 3
    arrays = {
        f"{name}_{n}": one for n in (0, 1) for name, one in (("voxels", voxels), ("inside", inside), ("attention", attention))
    }
    np.savez_compressed(tmp_path / FILE, about=np.array(json.dumps({"model": "m", "method": "linear", "items": about})), **arrays)
    return SimpleNamespace(path=tmp_path)


def test_items_are_shown_without_what_was_mirrored_and_attention_keeps_its_place(items):
    first, second = exhibit_items(items)
    assert (first.name, second.name) == ("most-certain-right-1", "most-certain-right-2")
    assert first.scan.shape == (22, 32, 28)
    assert second.scan.shape == (32, 32, 32)
    assert first.labels[0].labels.voxels.sum() == 4**3
    # The blob's unit is 16 voxels along X and Z and 8 along Y: its middle is voxel 23.5, 19.5, 7.5.
    assert first.attention is not None
    assert first.attention.affine.to_world([_BLOB])[0] == pytest.approx([47.0, 39.0, 15.0])
    assert first.scan.affine.to_world([(0, 0, 0)])[0] == pytest.approx([0, 0, 0])


def test_links_lead_to_what_the_file_holds_and_vanish_with_it(items):
    exhibits, page = exhibit_items(items), items.path / "report.html"
    assert link_viewer(page, exhibits) == []
    write_viewer(page, "t", exhibits)
    (links,) = link_viewer(page, exhibits)
    assert [address for _, address in links.targets] == [f"report-viewer.html#most-certain-right-{n}" for n in (1, 2)]
    html = render_page("t", "l", [Section("s", [links, Links("and", [("<b>", "x.html")])])])
    assert '<a href="report-viewer.html#most-certain-right-1">most certain, right: a</a>, <a href=' in html
    assert '<a href="x.html">&lt;b&gt;</a>.' in html
    assert name_viewer(page).stat().st_size < 4e6


def test_scans_of_a_segmentation_are_shown_by_model_and_reader_in_their_own_millimetres(tmp_path):
    (tmp_path / "examples").mkdir()
    affine = np.array([[1.0, 0, 0, -70], [0, 1, 0, 30], [0, 0, 2, -400], [0, 0, 0, 1]])
    codes = np.zeros((9, 8, 7), np.uint8)
    codes[3:6, 2:4, 1:3] = 1
    kept = {"voxels": np.zeros((9, 8, 7), np.int16), "truth": codes, "predicted": codes[::-1], "spacing": (1.0, 1.0, 2.0)}
    kept |= {"point": (4, 3, 2), "modality": "CT"}
    np.savez_compressed(tmp_path / "examples" / "best.npz", affine=affine, **kept)
    np.savez_compressed(tmp_path / "examples" / "worst.npz", **kept)  # as of a folder written before
    extra = {"structures": [{"name": "liver"}], "examples": {"best": {"item": "a"}, "worst": {"item": "b"}}}
    best, worst = exhibit_scans(SimpleNamespace(path=tmp_path, summary=SimpleNamespace(extra=extra)))
    assert (best.name, best.title, worst.title) == ("best", "best: a", "worst: b")
    assert best.point == pytest.approx([-66, 33, -396])
    assert worst.point == pytest.approx([4, 3, 4])
    assert [(layer.called, layer.names) for layer in best.labels] == [("model", {1: "liver"}), ("reader", {1: "liver"})]
    assert best.labels[0].colors != best.labels[1].colors
