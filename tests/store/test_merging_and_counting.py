"""Stores of one preparation merge into one that is whole, and are counted by their manifest alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dagman.cli.scans.store import app
from dagman.errors import StoreError
from dagman.reports.store_page import list_spreads, list_unrecorded
from dagman.store.format import locate_scan
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.upkeep import merging
from dagman.store.upkeep.merging import merge_stores
from dagman.store.upkeep.statistics import count_store
from dagman.store.upkeep.verification import verify_store
from dagman.store.writer import prepare_store

_COARSE = Preparation(spacing=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, nifti_of, trunk) -> Path:
    """Scans a and b in one folder, b (a copy) and c in another, and their stores; all of both in a third."""
    root = tmp_path_factory.mktemp("merging")
    for place, number in (("one/a", 1), ("one/b", 2), ("two/b", 2), ("two/c", 3)):
        nifti_of(root / "scans" / f"{place}.nii.gz", trunk(number))
    for name in ("one", "two"):
        prepare_store(root / "scans" / name, root / name, preparation=_COARSE, workers=1)
    return root


def _describe(store: Path) -> list[tuple]:
    return [(row.id, row.checksum, row.shape, row.affine, row.patient) for row in Store(store).rows]


def test_a_merged_store_is_that_of_all_scans_and_is_known_again(folder, tmp_path):
    merged = merge_stores([folder / "one", folder / "two"], tmp_path / "all")
    prepare_store([folder / "scans" / "one", folder / "scans" / "two"], tmp_path / "whole", preparation=_COARSE, workers=1)
    assert _describe(tmp_path / "all") == _describe(tmp_path / "whole")
    assert (merged.scans, merged.already, len(merged.copies)) == (3, 0, 1)
    assert set(merged.copies) == {row.id for row in Store(folder / "one").rows} & {row.id for row in Store(folder / "two").rows}
    assert verify_store(Store(tmp_path / "all")) == []
    assert merge_stores([folder / "one", folder / "two"], tmp_path / "all").already == 3
    again = prepare_store([folder / "scans" / "one", folder / "scans" / "two"], tmp_path / "all", preparation=_COARSE, workers=1)
    assert (again.kept, again.rejected, again.replaced) == (3, 1, ())
    assert again.already == 3
    assert len(Store(folder / "one")) == len(Store(folder / "two")) == 2


def test_a_merge_that_was_killed_goes_on(folder, tmp_path, monkeypatch):
    placed = []

    def place(store, out, row):
        if placed:
            raise KeyboardInterrupt
        placed.append(row.id)
        real(store, out, row)

    real = merging._place_file
    monkeypatch.setattr(merging, "_place_file", place)
    with pytest.raises(KeyboardInterrupt):
        merge_stores([folder / "one", folder / "two"], tmp_path / "all")
    assert [row.id for row in Store(tmp_path / "all").rows] == placed
    monkeypatch.undo()
    monkeypatch.setattr(merging.os, "link", lambda *paths: (_ for _ in ()).throw(OSError("another file system")))
    assert merge_stores([folder / "one", folder / "two"], tmp_path / "all").already == 1
    assert verify_store(Store(tmp_path / "all")) == []


def test_what_does_not_fit_together_is_refused_by_name(folder, tmp_path):
    prepare_store(folder / "scans" / "two", tmp_path / "finer", preparation=Preparation(spacing=6.0), workers=1)
    with pytest.raises(StoreError, match=r"spacing 6\.0 \(not 8\.0\)"):
        merge_stores([folder / "one", tmp_path / "finer"], tmp_path / "all")
    with pytest.raises(StoreError, match="is one of the stores"):
        merge_stores([folder / "one", folder / "two"], folder / "two")
    shutil.copytree(folder / "one", tmp_path / "other")
    with pytest.raises(StoreError, match="contains scans that are in none of these stores"):
        merge_stores([folder / "two", folder / "two"], tmp_path / "other")
    damaged = locate_scan(tmp_path / "other", Store(tmp_path / "other").rows[0].id)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="is damaged"):
        merge_stores([tmp_path / "other", folder / "two"], tmp_path / "all")


def test_counts_are_those_of_the_manifest_and_the_page_names_no_one(folder, tmp_path):
    run = CliRunner().invoke(app, ["stats", str(folder / "one"), "--out", str(tmp_path / "page.html"), "--json"])
    assert run.exit_code == 0, run.output
    counts = json.loads(run.output)
    rows = Store(folder / "one").rows
    assert (counts["scans"], counts["patients"], counts["modalities"]) == (2, 2, {"CT": 2})
    assert counts["bytes"] == sum(row.size for row in rows)
    lengths = sorted(row.shape[2] * 8.0 for row in rows)
    assert [counts["body_extent_mm"]["z"][name] for name in ("least", "median", "greatest")] == [
        lengths[0],
        sum(lengths) / 2,
        lengths[1],
    ]
    assert counts["source_spacing_mm"]["z"]["median"] == rows[0].source_spacing[2]
    assert (counts["kernels"], counts["before_spacings"]) == ({"not stated": 2}, 0)
    page = (tmp_path / "page.html").read_text()
    assert "2 scans of 2 patients" in page
    by_name = {name: numbers for name, *numbers in list_spreads(counts)}
    assert all(re.fullmatch(r"\d+\.\d", number) for number in by_name["tissue (% of a CT's voxels)"]), "even decimals"
    assert by_name["scans per patient"] == ["1"] * 5
    assert not any(row.patient in page for row in rows)


def test_spacings_and_kernels_of_the_sources_are_kept_and_older_stores_open_without(trunk, write_dicom, tmp_path):
    matrix = np.diag([-3.0, -3.0, 6.0, 1.0])
    for number, kernel in enumerate((["Br40d", "3"], "B30f", "B30f")):
        write_dicom(tmp_path / "scans" / str(number), trunk(number), matrix, uid=f"1.2.3.{number}", ConvolutionKernel=kernel)
    prepare_store(tmp_path / "scans", tmp_path / "store", preparation=Preparation(spacing=8.0), workers=1)
    counts = count_store(Store(tmp_path / "store"))
    assert counts["kernels"] == {"B30f": 2, "Br40d\\3": 1}
    assert [counts["source_spacing_mm"][axis]["least"] for axis in "xyz"] == [3.0, 3.0, 6.0]
    path = tmp_path / "store" / "manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["source_spacing", "kernel"]), path)
    for file in ("journal.jsonl", "folded.json"):
        (tmp_path / "store" / file).unlink()
    older = count_store(Store(tmp_path / "store"))
    assert (older["scans"], older["kernels"], older["before_spacings"]) == (3, {}, 3)
    assert list_unrecorded(older) == ["spacing and kernel of 3 scans from an earlier dagman"]
