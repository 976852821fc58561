"""The files of a folder of token grids.

```
OUT/
├── dense.json            format version, the encoder, stages, channels, strides, number type
├── dense.csv             one row per scan: id, row, scan, patient, content_hash, seen_in_pretraining, maps (folder below OUT)
├── maps/ab/<id>/x3.b2nd  blosc2, C x y z in RAS+; affine, spacing and encoder are in its metadata, as JSON
├── rejected.csv          source, reason
└── command.json          the command with its settings and environment
```
The id is the start of the scan's content hash, as in a store. A chunk contains all channels of 16^3 tokens, so that reading a
region decompresses only the chunks that it intersects; see docs/decisions/0047-token-grids-in-blosc2.md.
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
"""Tokens along each edge of a blosc2 chunk and block."""
KEY = "dagman"
"""Key of dagman's metadata in a file."""
Number = Literal["float32", "float16"]
NUMBERS: tuple[Number, ...] = ("float32", "float16")
COLUMNS = ("id", "row", "scan", "patient", "content_hash", "seen_in_pretraining", "maps")
_AGAIN = "Run dagman embed --dense again on the same scans"


def describe_dense(encoder: Encoder, stages: tuple[int, ...], number: Number) -> dict[str, Any]:
    """Describe token grids for `dense.json`; a folder can be continued if its description matches."""
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
    """Read `dense.json`.

    Raises:
        StoreError: The file is missing, damaged, or of another format version.
    """
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
    """Return the folder of a scan's grids, relative to the folder of all token grids."""
    name = content_hash[:ID_LENGTH]
    return Path("maps") / name[:2] / name


def write_grid(path: Path, grid: TokenGrid, number: Number, metadata: Mapping[str, Any]) -> None:
    """Write the grid of one stage chunk by chunk, with its affine and `metadata`.

    Raises:
        EncoderError: Tokens are not finite, or exceed the range of float16.
    """
    channels, *sides = grid.shape
    values = {
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
        # With several threads, the bytes are not reproducible.
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
        urlpath=str(path),
        mode="w",
    )
    array.schunk.vlmeta[KEY] = json.dumps(values, default=str)
    for corner in np.ndindex(*(-(-side // CHUNK) for side in sides)):
        x, y, z = (slice(CHUNK * at, min(CHUNK * (at + 1), side)) for at, side in zip(corner, sides, strict=True))
        with np.errstate(over="ignore"):
            tokens = grid.read((x, y, z)).astype(number, order="C")
        if not np.isfinite(tokens).all():
            many = " as float16" if number == "float16" else ""
            raise EncoderError(f"its features are not finite numbers{many}", do="Write float32" if many else "Check the encoder")
        array[:, x, y, z] = tokens


def open_grid(path: Path) -> tuple[blosc2.NDArray, dict[str, Any]]:
    """Open a grid lazily; returns a handle and the metadata.

    Raises:
        StoreError: The file is missing, damaged, or not a token grid.
    """
    handle = open_array(path, _AGAIN)
    try:
        metadata = json.loads(handle.schunk.vlmeta[KEY])
        fits = handle.ndim == 4 and str(handle.dtype) in NUMBERS and len(metadata["affine"]) == 4
    except (KeyError, ValueError, TypeError, RuntimeError):
        fits, metadata = False, {}
    if not fits:
        raise StoreError("is not a feature map written by dagman", where=path, do=_AGAIN)
    return handle, metadata
