"""The files of a store: `store.json`, and one compressed file a scan.

```
STORE/
├── store.json            format version, spacing, dtype, orientation, preparation and its digest, fingerprint of the key
├── manifest.parquet      one row a scan, sorted by id (manifest.py)
├── scans/ab/<id>.b2nd    blosc2, int16, X Y Z in RAS+, C order
├── rejected.csv          source, reason
├── journal.jsonl         what the writer did, row by row; the manifest is folded from it; what sources.py knows of sources
├── headers.jsonl         of DICOM sources, under pseudonyms, so that files that did not change are not read again
├── folded.json           how much of the journal the manifest holds, so that it is not read again
└── command.json          how it came to be
```
The id is the start of the scan's content hash, so one scan has one id in every store. Blocks of 32^3 under LZ4 with byte
shuffle: a 96^3 crop reads only the blocks it meets, 400 to 700 crops a second and thread; zstd saves a fifth of the bytes
and costs half of that (BASELINES 4, and `benchmarks/input.py`).
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
    """The id of a scan in any store."""
    return content_hash[:ID_LENGTH]


def locate_scan(store: Path, scan_id: str) -> Path:
    """The file of a scan."""
    return store / "scans" / scan_id[:2] / f"{scan_id}.b2nd"


def pack_voxels(voxels: NDArray[np.int16]) -> bytes:
    """The bytes of a scan's file; the same voxels give the same bytes."""
    blocks = tuple(min(BLOCK, size) for size in voxels.shape)
    chunks = tuple(min(CHUNK, -(-size // block) * block) for size, block in zip(voxels.shape, blocks, strict=True))
    # One thread: with more, blocks land in the order they are done and the bytes differ from time to time.
    settings = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    packed = blosc2.asarray(np.ascontiguousarray(voxels), chunks=chunks, blocks=blocks, cparams=settings)
    frame: bytes = packed.to_cframe()
    return frame


def open_voxels(path: Path) -> blosc2.NDArray:
    """A lazy handle on a scan's voxels; raises StoreError when the file is missing or damaged."""
    handle = open_array(path, _AGAIN)
    if handle.ndim != 3 or handle.dtype != np.int16:
        raise damaged_file(path)
    return handle


def open_array(path: Path, do: str) -> blosc2.NDArray:
    """A lazy handle on an array of blosc2; raises StoreError, which says to `do`, when the file is missing, damaged or no array.

    blosc2 has files that are computed by code which they hold, too: they are refused, unread.
    """
    if not path.is_file():
        raise StoreError("is missing", where=path, do=do)
    try:
        # One thread: loader processes decompress beside each other already.
        handle = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError) as error:
        raise damaged_file(path, do) from error
    if type(handle) is not blosc2.NDArray:
        raise damaged_file(path, do)
    return handle


def damaged_file(path: Path, do: str = "Delete it and run dagman prepare again on the same scans") -> StoreError:
    """What is said of a file that cannot be decompressed."""
    return StoreError("is damaged", where=path, do=do)


def write_info(store: Path, preparation: Preparation, key: str | None = None) -> None:
    """Write `store.json`, the file that makes a folder a store. key: fingerprint of the key that names its patients."""
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
    """Whether a folder to be written holds a store already; raises StoreError where it is a file or holds something else."""
    if out.exists() and not out.is_dir():
        raise StoreError("is a file, not a folder", where=out, do="Give another --out")
    if (out / "store.json").exists():
        return True
    if out.exists() and any(one.name != ".lock" for one in out.iterdir()):
        raise StoreError("exists and is not a store", where=out, do="Give an empty or new folder")
    return False


def read_info(store: Path) -> dict[str, Any]:
    """`store.json`; raises StoreError when there is none, or it has another format."""
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
        found = info.get("format") if isinstance(info, dict) else None
        raise StoreError(
            f"is a store of format {found}, but this version of dagman reads and writes format {FORMAT}",
            where=store,
            do="Prepare the scans again into a new folder, or use the version of dagman that wrote it",
        )
    return info


def read_preparation(info: dict[str, Any], store: Path) -> Preparation:
    """The preparation a store was made with; raises StoreError when it is not one of this dagman's."""
    try:
        return Preparation(**info["preparation"])
    except (KeyError, TypeError, DagmanError) as error:
        raise StoreError("store.json does not state how scans were prepared", where=store, do="Prepare the scans again") from error
