"""Proves that token grids on disk are those of one pass, know where they lie, open by region, and need one tile of memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pandas as pd
import pytest
import torch

import dagman
from dagman.encoder.dense.format import write_grid
from dagman.encoder.dense.grids import compute_grids
from dagman.encoder.dense.reading import DenseStore
from dagman.encoder.dense.writing import DenseRow, write_dense
from dagman.encoder.embedding import map_scan
from dagman.encoder.encoder import Encoder
from dagman.encoder.items import list_scans
from dagman.encoder.tiling import estimate_bytes, plan_pass, plan_tiles, sliding_window_inference, stream_tiles
from dagman.errors import DagmanError, StoreError, TaskError
from dagman.randomness import generator
from dagman.scans.affine import Affine
from dagman.store.preparation import PreparedScan


def _prepare(shape: tuple[int, int, int]) -> PreparedScan:
    return PreparedScan(
        voxels=generator(0, "grid", *shape).integers(-1000, 500, shape).astype(np.int16),
        affine=Affine([[0, -4, 0, 7], [4, 0, 0, -3], [0, 0, 4, 1], [0, 0, 0, 1]]),
        modality="CT",
        crop_box=((0, 0, 0), shape),
        scale=None,
        content_hash="",
        patient="",
        source="",
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, body_hu: Callable[..., np.ndarray], write_image: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for number in (1, 2):
        write_image(folder / f"s{number}.nii.gz", body_hu(seed=number))
    (folder / "s3.nii.gz").write_bytes(b"no scan")
    return folder


@pytest.fixture(scope="module")
def kept(encoder: Encoder, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> DenseStore:
    return encoder.embed_dense(scans, tmp_path_factory.mktemp("dense") / "out", stages=(1, 3))


@pytest.mark.parametrize("shape", [(40, 33, 20), (70, 20, 9)])
def test_the_shares_of_tiles_add_up_to_the_blend(shape: tuple[int, int, int]):
    voxels, tiling = _prepare(shape).voxels, plan_tiles(shape, 32)

    def forward(tiles: torch.Tensor) -> list[torch.Tensor]:
        # Not local: what a tile gives depends on what else is in it.
        return [torch.nn.functional.avg_pool3d(tiles, 4) + tiles.mean((1, 2, 3, 4), keepdim=True)]

    (blended,) = sliding_window_inference(forward, voxels, tiling, fill=-1024)
    summed = torch.zeros_like(blended)
    for (x, y, z), (tile,) in stream_tiles(forward, voxels, tiling, fill=-1024):
        summed[:, x // 4 : x // 4 + 8, y // 4 : y // 4 + 8, z // 4 : z // 4 + 8] += tile
    torch.testing.assert_close(summed, blended, rtol=1e-4, atol=1e-2)


def test_grids_of_tiles_agree_with_one_pass(encoder: Encoder):
    prepared, stages = _prepare((320, 60, 64)), (1, 2, 3, 4)
    memory = 256 * 64 * 64 * estimate_bytes(encoder.network.encoder)
    assert len(plan_pass(prepared.shape, 32, encoder.network.encoder, memory=memory).starts) > 1
    with compute_grids(encoder, prepared, stages) as once, compute_grids(encoder, prepared, stages, memory=memory) as tiled:
        for whole, parts, bound in zip(once, tiled, (0.001, 0.002, 0.01, 0.03), strict=True):
            assert whole.path is None
            assert parts.path is not None
            assert whole.shape == parts.shape
            assert whole.affine.is_close(parts.affine)
            box = tuple(slice(0, size) for size in whole.shape[1:])
            off = parts.read(box) - whole.read(box)
            assert np.sqrt(np.square(off).mean()) < bound * whole.read(box).std()
        spool = tiled[0].path
    assert spool is not None
    assert not spool.parent.exists()


def test_grids_are_those_of_map_scan_without_the_padding(encoder: Encoder):
    prepared = _prepare((40, 32, 20))
    dense = map_scan(encoder, prepared, (1, 3))
    with compute_grids(encoder, prepared, (1, 3)) as grids:
        # 40 voxels in 64, 12 before: tokens 3 to 12 of x1; 20 in 32, 6 before: 1 to 6.
        assert grids[0].shape[1:] == (10, 8, 6)
        np.testing.assert_array_equal(grids[0].read((slice(None),) * 3), dense.maps[0][:, 3:13, :, 1:7].numpy())
        for grid, affine in zip(grids, dense.affines, strict=True):
            np.testing.assert_allclose(grid.affine.matrix, affine.crop(grid.start).matrix)
            # The first voxel of the scan lies `offset` voxels from the outer corner of the first token.
            place = grid.affine.to_voxel([prepared.affine.origin])[0]
            np.testing.assert_allclose(place, (np.array(grid.offset) + 0.5) / grid.stride - 0.5)


def test_memory_is_one_tile_however_long_the_scan(encoder: Encoder, tmp_path: Path):
    memory = 128 * 64 * 64 * estimate_bytes(encoder.network.encoder)
    peaks = []
    for length in (192, 384):
        prepared = _prepare((length, 64, 64))
        with compute_grids(encoder, prepared, (1,), memory=memory, folder=tmp_path) as (grid,):
            tracemalloc.start()
            write_grid(tmp_path / f"{length}.b2nd", grid, "float32", {})
            grid.add((0, 0, 0), np.zeros((grid.shape[0], 16, 16, 16), np.float32))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_a_region_knows_its_place(kept: DenseStore, encoder: Encoder, scans: Path):
    assert kept.names == ["s1.nii.gz", "s2.nii.gz"]
    assert kept.info["strides"] == [4, 16]
    opened = kept.open("s1.nii.gz", 1)
    assert opened.spacing == pytest.approx((16, 16, 16))
    whole = opened.read()
    part = opened.read(slice(2, 5), z=slice(1, None))
    np.testing.assert_array_equal(part.values, whole.values[:, 2:5, :, 1:])
    np.testing.assert_allclose(part.affine.origin, opened.affine.to_world([[2, 0, 1]])[0])
    # A box of the patient: corners in any order, tokens that it touches.
    low, high = opened.affine.to_world([[2.6, 3.0, 1.2], [4.4, 3.0, 2.0]])
    box = opened.read_mm(high, low)
    np.testing.assert_array_equal(box.values, whole.values[:, 3:5, 3:4, 1:3])
    np.testing.assert_array_equal(opened.read_at(opened.affine.to_world([[2.4, 3, 1]])), whole.values[:, 2, 3, 1][None])
    dense = map_scan(encoder, scans / "s1.nii.gz", (1,))
    start = np.rint(dense.affines[0].to_voxel([opened.affine.origin])[0]).astype(int)
    x, y, z = (slice(first, first + size) for first, size in zip(start, opened.shape[1:], strict=True))
    np.testing.assert_array_equal(whole.values, dense.maps[0][:, x, y, z].numpy())


def test_any_program_with_blosc2_reads_a_grid_and_its_place(kept: DenseStore):
    opened = kept.open("s2.nii.gz")
    array = blosc2.open(str(opened.path))
    about = json.loads(array.schunk.vlmeta["dagman"])
    assert about["stage"] == 3
    assert about["spacing_mm"] == pytest.approx([64.0] * 3)
    np.testing.assert_allclose(about["affine"], opened.affine.matrix)
    assert array[:, 0:1].shape == (opened.shape[0], 1, *opened.shape[2:])


def test_a_folder_is_continued_and_not_mixed(kept: DenseStore, encoder: Encoder, scans: Path, make_tiny_encoder, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(kept.path, out)
    items, _ = list_scans(scans)
    repeated = [row for row in write_dense(encoder, items, out, stages=(3, 1)) if isinstance(row, DenseRow)]
    assert [row.kept for row in repeated] == [True, True]
    with pytest.raises(StoreError, match=r"of stages \[1, 3\], not \[1\]"):
        list(write_dense(encoder, items, out, stages=(1,)))
    with pytest.raises(StoreError, match="of another encoder"):
        list(write_dense(dagman.load(make_tiny_encoder(low=-500.0), device="cpu"), items, out, stages=(1, 3)))
    with pytest.raises(StoreError, match="holds no feature maps"):
        list(write_dense(encoder, items, scans))
    assert not (scans / ".lock").exists()


def test_half_numbers_take_half_the_room(encoder: Encoder, scans: Path, kept: DenseStore, tmp_path: Path):
    half = encoder.embed_dense(
        pd.DataFrame({"scan": [scans / "s1.nii.gz"], "patient": ["a"]}), tmp_path / "half", stages=(1,), dtype="float16"
    )
    opened = half.open(half.names[0])
    assert half.rows[0]["patient"] == "a"
    assert opened.read().values.dtype == np.float16
    exact = kept.open("s1.nii.gz", 1)
    np.testing.assert_allclose(opened.read().values, exact.read().values, atol=4e-3)
    assert opened.path.stat().st_size < 0.7 * exact.path.stat().st_size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda store: store.open("s9"), "holds no scan 's9'"),
        (lambda store: store.open("s1.nii.gz", 2), "holds no x2. Choose one of x1, x3"),
        (lambda store: store.open("s1.nii.gz", 1).read(slice(5, 2)), "is not a region of"),
        (lambda store: store.open("s1.nii.gz", 1).read_mm((900, 0, 0), (901, 1, 1)), "lies outside the scan"),
        (lambda store: store.open("s1.nii.gz", 1).read_at((900, 0, 0)), "point 1 lies outside"),
        (lambda store: dagman.open_dense(store.path / "maps"), "holds no feature maps"),
    ],
)
def test_what_is_not_there_is_refused(kept: DenseStore, change: Callable, says: str):
    with pytest.raises(StoreError, match=says):
        change(kept)


def test_a_damaged_or_foreign_grid_is_refused(kept: DenseStore, tmp_path: Path):
    shutil.copytree(kept.path, tmp_path / "out")
    store = dagman.open_dense(tmp_path / "out")
    path = store.path / store.rows[0]["maps"] / "x1.b2nd"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StoreError, match="is damaged"):
        store.open("s1.nii.gz", 1)
    path.unlink()
    blosc2.asarray(np.zeros((2, 3, 3, 3), np.float32), urlpath=str(path), mode="w")
    with pytest.raises(StoreError, match="is not a feature map"):
        store.open("s1.nii.gz", 1)
    (store.path / "dense.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        dagman.open_dense(store.path)


def test_nothing_to_write_is_an_error(encoder: Encoder, scans: Path, tmp_path: Path):
    with pytest.raises(DagmanError, match="does not exist"):
        encoder.embed_dense(scans / "s9.nii.gz", tmp_path / "none")
    with pytest.raises(TaskError, match=r"none of 1 scan can be embedded; the first: .*s3"):
        encoder.embed_dense(pd.DataFrame({"scan": [scans / "s3.nii.gz"]}), tmp_path / "none")


def test_the_command_writes_a_folder(call_dagman, encoder_folder: Path, scans: Path, tmp_path: Path):
    arguments = ("embed", encoder_folder, scans, "--dense", "--out", tmp_path / "out", "--stages", "4", "--json")
    code, printed, errors = call_dagman(*arguments)
    assert code == 0, errors
    outcome = json.loads(printed)
    assert (outcome["written"], outcome["kept"], outcome["refused"]) == (2, 0, 1)
    assert json.loads(call_dagman(*arguments)[1])["kept"] == 2
    assert dagman.open_dense(tmp_path / "out").stages == (4,)
    assert "s3.nii.gz" in (tmp_path / "out" / "rejected.csv").read_text()
    assert json.loads((tmp_path / "out" / "command.json").read_text())["settings"]["stages"] == [4]
    code, _, errors = call_dagman("embed", encoder_folder, scans, "--dense", "--out", tmp_path / "out", "--pools", "mean")
    assert code == 2
    assert errors == "dagman: --pools has no effect with --dense. Leave it out.\n"
