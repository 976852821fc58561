"""Proves that files made to do harm run nothing, and are refused in a line: pickles of any name, false headers, absurd sizes."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from dagman.encoder.feature_cache import FeatureCache
from dagman.encoder.feature_file import read_features
from dagman.encoder.loading import load_encoder
from dagman.errors import DagmanError
from dagman.store.format import open_voxels
from dagman.tables.table import read_table
from dagman.tasks.inputs.examples import FILE, read_examples
from dagman.tasks.segment.examples import read_examples as read_segmentations
from dagman.testing import write_tiny_encoder


class Harm:
    """A pickle that leaves a file where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path):
    """The folder that harm would make; it must not be there at the end."""
    path = tmp_path / "harm"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("crafted") / "encoder")


def _refuse(load: Callable[[], Any]) -> str:
    with pytest.raises(DagmanError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def _copy(whole: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((whole / name).read_bytes())
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "torch", "bin", "ckpt", "pkl"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_runs_nothing_whatever_it_is_called(suffix: str, kind: str, mark: Path, tmp_path: Path):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": Harm(mark)}}, buffer)
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(buffer.getvalue() if kind == "torch" else pickle.dumps(Harm(mark), protocol=2))
    assert str(path) in _refuse(lambda: load_encoder(f"monai:{path}", device="cpu"))


def test_a_pickle_in_an_encoder_folder_runs_nothing(whole: Path, mark: Path, tmp_path: Path):
    folder = _copy(whole, tmp_path / "encoder")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Harm(mark)))
    assert "model.safetensors: is damaged" in _refuse(lambda: load_encoder(folder, device="cpu"))
    # A file that others' programs would read in its place is not looked at.
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(mark)))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in _refuse(lambda: load_encoder(folder, device="cpu"))


def _change_header(data: bytes, change: Callable[[dict[str, Any], str, str], None]) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    first, second, *_ = (name for name in header if name != "__metadata__")
    change(header, first, second)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(
    "craft",
    [
        lambda data: b"",
        lambda data: data[:-100],
        lambda data: data + bytes(100),
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
        lambda data: _change_header(data, lambda header, one, _: header[one].update(data_offsets=[0, 10**12])),
        lambda data: _change_header(data, lambda header, one, _: header[one].update(shape=[10**9, 10**9])),
        lambda data: _change_header(data, lambda header, one, _: header[one].update(dtype="OBJ")),
        lambda data: _change_header(data, lambda header, one, other: header[one].update(header[other])),
    ],
    ids=["empty", "cut", "longer", "long header", "deep", "beyond the end", "huge", "object", "overlapping"],
)
def test_a_false_safetensors_header_is_refused(whole: Path, craft: Callable[[bytes], bytes], tmp_path: Path):
    folder = _copy(whole, tmp_path / "encoder")
    crafted = craft((whole / "model.safetensors").read_bytes())
    (folder / "model.safetensors").write_bytes(crafted)
    assert "model.safetensors" in _refuse(lambda: load_encoder(folder, device="cpu"))
    assert "is not a safetensors file" in _refuse(lambda: load_encoder(f"monai:{folder / 'model.safetensors'}", device="cpu"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": {"embed": 10**7}}, "need more weights than model.safetensors holds"),
        ({"shape": {"embed": -8}}, "not whole numbers above 0"),
        ({"shape": {"embed": 8.5}}, "is damaged"),
        ({"shape": {"depths": [10**8, 1, 1, 1]}}, "need more weights"),
        ({"shape": {"window": 10**4}}, "need more weights"),
        ({"shape": {"window": 0}}, "not whole numbers above 0"),
        ({"view": "64"}, "not whole numbers above 0"),
        ({"spacing": float("nan")}, "are not numbers"),
        ({"low": 5, "high": -5}, "is not a valid preprocessing"),
        ({"mask_fill": "other"}, "mask_fill is 'other'"),
        ({"semantic": {"stage": 99}}, "reads stage 99"),
        ({"backbone": "../../x:y"}, "there is no backbone"),
        ({"surprise": 1}, "unexpected keyword"),
    ],
)
def test_an_absurd_configuration_is_refused_before_it_is_built(whole: Path, change: dict[str, Any], says: str, tmp_path: Path):
    folder = _copy(whole, tmp_path / "encoder")
    values = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(values))
    assert says in _refuse(lambda: load_encoder(folder, device="cpu"))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe\x00", b"null", b"{}"])
def test_a_configuration_that_is_none_is_refused(whole: Path, text: bytes, tmp_path: Path):
    folder = _copy(whole, tmp_path / "encoder")
    (folder / "config.json").write_bytes(text)
    assert "is damaged" in _refuse(lambda: load_encoder(folder, device="cpu"))


def test_arrays_that_hold_objects_are_not_read(mark: Path, tmp_path: Path):
    objects = np.array([Harm(mark)], dtype=object)
    for name, content in (("one", None), ("two", pickle.dumps(Harm(mark)))):
        path = tmp_path / "cache" / name[:2] / f"{name}.npy"
        path.parent.mkdir(parents=True)
        if content is None:
            np.save(path, objects, allow_pickle=True)
        else:
            path.write_bytes(content)
        # A vector that cannot be read is computed anew.
        assert FeatureCache(tmp_path / "cache").get(name) is None
    with open(tmp_path / FILE, "wb") as file:
        np.savez(file, about=objects)
    assert "is damaged" in _refuse(lambda: read_examples(tmp_path))
    (tmp_path / "examples").mkdir()
    np.savez(tmp_path / "examples" / "a.npz", spacing=objects)
    assert "cannot be read" in _refuse(lambda: read_segmentations(tmp_path, {"a": {"item": "x"}}))


@pytest.mark.parametrize("name", ["table.parquet", "table.xlsx", "table.pkl"])
def test_a_pickle_is_no_table(name: str, mark: Path, tmp_path: Path):
    (tmp_path / name).write_bytes(pickle.dumps(Harm(mark)))
    assert name in _refuse(lambda: read_table(tmp_path / name))
    assert name in _refuse(lambda: read_features(tmp_path / name))


def test_a_stored_scan_that_holds_code_is_refused(mark: Path, tmp_path: Path):
    plain = blosc2.asarray(np.ones((8, 8, 8), np.int16), urlpath=str(tmp_path / "plain.b2nd"), mode="w")

    def fill(inputs, output, offset):
        import os

        os.mkdir(str(mark))
        output[:] = 1

    blosc2.lazyexpr("plain + 1", operands={"plain": plain}).save(urlpath=str(tmp_path / "lazy.b2nd"))
    blosc2.lazyudf(fill, (plain,), plain.dtype).save(urlpath=str(tmp_path / "code.b2nd"))
    (tmp_path / "pickle.b2nd").write_bytes(pickle.dumps(Harm(mark)))
    for name in ("lazy", "code", "pickle"):
        assert "is damaged" in _refuse(lambda name=name: open_voxels(tmp_path / f"{name}.b2nd"))
    assert open_voxels(tmp_path / "plain.b2nd").shape == (8, 8, 8)
