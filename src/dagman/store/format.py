"""Defines the files of a store: `store.json`, and one compressed file per scan.

```
STORE/
├── store.json            format version, spacing, dtype, orientation, preparation and its digest, fingerprint of the key
├── manifest.parquet      one row per scan, sorted by id (manifest.py)
├── scans/ab/<id>.b2nd    blosc2, int16, X Y Z in RAS+, C order
├── rejected.csv          source, reason
├── journal.jsonl         actions of the writer, from which the manifest is built, and where scans came from (sources.py)
├── headers.jsonl         cached headers of DICOM sources, under pseudonyms, so that unchanged files are not read again
├── folded.json           how much of the journal is in the manifest, so that it is not read again
└── command.json          command, settings and inputs that made the store
```
The id is the start of the scan's content hash, so a scan has the same id in every store. Voxels are stored in blocks of 32^3 with
byte shuffle and LZ4. A 96^3 crop reads only the blocks it touches, at 400 to 700 crops per second and thread; zstd would save a
fifth of the bytes at half of that speed (BASELINES 4, and `benchmarks/input.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from dagman.errors import DagmanError, StoreError
from dagman.records.files import write_json
from dagman.records.names import suggest_path
from dagman.store.preparation import Preparation

FORMAT = 1
BLOCK, CHUNK = 32, 128
ID_LENGTH = 16
_AGAIN = "Run dagman prepare again on the same scans; it writes what is missing"
STAGING = "staging"
"""Folder of files that workers have written and the writer has not yet accepted."""


def name_scan(content_hash: str) -> str:
    """Return the id of a scan, which is the same in any store."""
    return content_hash[:ID_LENGTH]


def locate_scan(store: Path, scan_id: str) -> Path:
    """Return the path of a scan's file."""
    return store / "scans" / scan_id[:2] / f"{scan_id}.b2nd"


def pack_voxels(voxels: NDArray[np.int16]) -> bytes:
    """Return the content of a scan's file; the same voxels give the same bytes."""
    blocks = tuple(min(BLOCK, size) for size in voxels.shape)
    chunks = tuple(min(CHUNK, -(-size // block) * block) for size, block in zip(voxels.shape, blocks, strict=True))
    # One thread: with more, blocks are written in the order they are done, which varies.
    settings = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    packed = blosc2.asarray(np.ascontiguousarray(voxels), chunks=chunks, blocks=blocks, cparams=settings)
    frame: bytes = packed.to_cframe()
    return frame


def open_voxels(path: Path) -> blosc2.NDArray:
    """Open a scan's file without reading voxels; raises StoreError if it is missing or damaged."""
    handle = open_array(path, _AGAIN)
    if handle.ndim != 3 or handle.dtype != np.int16:
        raise damaged_file(path)
    return handle


def open_array(path: Path, do: str) -> blosc2.NDArray:
    """Open an array of blosc2 without reading its values.

    blosc2 also has files that contain code by which they are computed; they are refused without being read.

    Args:
        path: the file.
        do: remedy to put into the error.

    Raises:
        StoreError: if the file is missing, damaged, or not an array.
    """
    if not path.is_file():
        raise StoreError("is missing", where=path, do=do)
    try:
        # One thread, since loader processes decompress in parallel already.
        handle = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError) as error:
        raise damaged_file(path, do) from error
    if type(handle) is not blosc2.NDArray:
        raise damaged_file(path, do)
    return handle


def damaged_file(path: Path, do: str = "Delete it and run dagman prepare again on the same scans") -> StoreError:
    """Return the error for a damaged file."""
    return StoreError("is damaged", where=path, do=do)


def write_info(store: Path, preparation: Preparation, key: str | None = None) -> None:
    """Write `store.json`, which makes a folder a store; `key` is the fingerprint of the key behind its pseudonyms."""
    info = {
        "format": FORMAT,
        "spacing": preparation.spacing,
        "dtype": "int16",
        "orientation": "RAS+",
        "preparation": asdict(preparation),
        "digest": preparation.digest,
        **({} if key is None else {"key": key}),
    }
    write_json(store / "store.json", info)


def holds_store(out: Path) -> bool:
    """Return whether an output folder is a store already; raises StoreError if it is a file or contains something else."""
    if out.exists() and not out.is_dir():
        raise StoreError("is a file, not a folder", where=out, do="Give another --out")
    if (out / "store.json").exists():
        return True
    if out.exists() and any(entry.name != ".lock" for entry in out.iterdir()):
        raise StoreError("exists and is not a store", where=out, do="Give an empty or new folder")
    return False


def read_info(store: Path) -> dict[str, Any]:
    """Read `store.json`; raises StoreError if it is missing, damaged, or of a different format."""
    path = store / "store.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        do = "Make one: dagman prepare SCANS --out STORE"
        if not store.exists():
            raise StoreError("does not exist", where=store, do=suggest_path(store, do)) from None
        raise StoreError("is not a store: it has no store.json", where=store, do=do) from None
    except (OSError, ValueError) as error:
        raise StoreError("cannot be read", where=path, do="Prepare the scans again into a new folder") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        version = info.get("format") if isinstance(info, dict) else None
        raise StoreError(
            f"is a store of format {version}, but this version of dagman reads and writes format {FORMAT}",
            where=store,
            do="Prepare the scans again into a new folder, or use the version of dagman that wrote it",
        )
    return info


def read_preparation(info: dict[str, Any], store: Path) -> Preparation:
    """Read how a store's scans were prepared; raises StoreError if this version of dagman does not know the settings."""
    try:
        return Preparation(**info["preparation"])
    except (KeyError, TypeError, DagmanError) as error:
        raise StoreError("store.json does not state how scans were prepared", where=store, do="Prepare the scans again") from error
