"""The files of a folder of token grids.

```
OUT/
├── dense.json            format version, the encoder, stages, channels, strides, number type
├── dense.csv             one row a scan: id, row, scan, patient, content_hash, seen_in_pretraining, maps (its folder below OUT)
├── maps/ab/<id>/x3.b2nd  blosc2, C x y z in RAS+; its affine, spacing and encoder are in its metadata, as JSON
├── rejected.csv          source, reason
└── command.json          how it came to be
```
The id is the start of the scan's content hash, as in a store. A chunk holds all channels of 16^3 tokens, so that a region reads
what it meets; see docs/decisions/0047-token-grids-in-blosc2.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np

from dagman.encoder.dense.grids import TokenGrid
from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError, StoreError
from dagman.store.format import ID_LENGTH, open_array

FORMAT = 1
CHUNK, BLOCK = 16, 8
"""Tokens along an edge of what is read and of what is decompressed at once."""
KEY = "dagman"
"""Name of a file's metadata."""
Number = Literal["float32", "float16"]
NUMBERS: tuple[Number, ...] = ("float32", "float16")
COLUMNS = ("id", "row", "scan", "patient", "content_hash", "seen_in_pretraining", "maps")
_AGAIN = "Run dagman embed --dense again on the same scans"


def describe_dense(encoder: Encoder, stages: tuple[int, ...], number: Number) -> dict[str, Any]:
    """What `dense.json` holds; folders of equal descriptions can be continued."""
    from dagman import __version__

    backbone = encoder.network.encoder
    return {
        "format": FORMAT,
        "dagman": __version__,
        "encoder": {"source": encoder.source, "digest": encoder.digest, "what": encoder.describe(), "precision": encoder.precision},
        "stages": list(stages),
        "channels": [backbone.widths[stage - 1] for stage in stages],
        "strides": [backbone.strides[stage - 1] for stage in stages],
        "token_mm": [backbone.strides[stage - 1] * encoder.config.spacing for stage in stages],
        "dtype": number,
        "axes": "C x y z",
        "orientation": "RAS+",
    }


def read_dense_info(folder: Path) -> dict[str, Any]:
    """`dense.json`; raises StoreError when there is none, it is damaged, or of another format."""
    path = folder / "dense.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = info["format"]
    except (FileNotFoundError, NotADirectoryError):
        do = "Create one: dagman embed ENCODER SCANS --dense --out DIR"
        raise StoreError("holds no feature maps: it has no dense.json", where=folder, do=do) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"is damaged: {error}", where=path, do=_AGAIN) from None
    if version != FORMAT:
        raise StoreError(
            f"is of format {version}; this version of dagman reads {FORMAT}",
            where=path,
            do="Use the version of dagman that wrote it",
        )
    return dict(info)


def locate_maps(content_hash: str) -> Path:
    """The folder of a scan's grids, below that of them all."""
    name = content_hash[:ID_LENGTH]
    return Path("maps") / name[:2] / name


def write_grid(path: Path, grid: TokenGrid, number: Number, metadata: Mapping[str, Any]) -> None:
    """Write one stage's grid chunk by chunk, its place and `metadata` with it.

    Raises EncoderError where tokens are not finite numbers, or beyond what float16 holds.
    """
    channels, *sides = grid.shape
    kept = {
        "format": FORMAT,
        "stage": grid.stage,
        "stride": grid.stride,
        "axes": "C x y z",
        "affine": grid.affine.matrix.tolist(),
        "spacing_mm": list(grid.affine.spacing),
        **metadata,
    }
    array = blosc2.empty(
        grid.shape,
        dtype=np.dtype(number),
        chunks=(channels, *(min(CHUNK, side) for side in sides)),
        blocks=(channels, *(min(BLOCK, side) for side in sides)),
        # One thread: with more, the bytes differ from time to time.
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
        urlpath=str(path),
        mode="w",
    )
    array.schunk.vlmeta[KEY] = json.dumps(kept, default=str)
    for corner in np.ndindex(*(-(-side // CHUNK) for side in sides)):
        x, y, z = (slice(CHUNK * at, min(CHUNK * (at + 1), side)) for at, side in zip(corner, sides, strict=True))
        with np.errstate(over="ignore"):
            tokens = grid.read((x, y, z)).astype(number, order="C")
        if not np.isfinite(tokens).all():
            many = " as float16" if number == "float16" else ""
            raise EncoderError(f"its features are not finite numbers{many}", do="Write float32" if many else "Check the encoder")
        array[:, x, y, z] = tokens


def open_grid(path: Path) -> tuple[blosc2.NDArray, dict[str, Any]]:
    """A lazy handle on a grid, and its metadata; raises StoreError when the file is missing, damaged, or something else."""
    handle = open_array(path, _AGAIN)
    try:
        metadata = json.loads(handle.schunk.vlmeta[KEY])
        fits = handle.ndim == 4 and str(handle.dtype) in NUMBERS and len(metadata["affine"]) == 4
    except (KeyError, ValueError, TypeError, RuntimeError):
        fits, metadata = False, {}
    if not fits:
        raise StoreError("is not a feature map written by dagman", where=path, do=_AGAIN)
    return handle, metadata
