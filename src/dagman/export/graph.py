"""Export an encoder as a single graph for views of any size, with torch.export or as ONNX (extra `onnx`)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.fx.experimental import _config

from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError, MissingExtraError
from dagman.export.backbones import make_graph
from dagman.export.forms import Exported
from dagman.export.preprocessing import FILE, describe_preprocessing
from dagman.model.foreign.residual_encoder import DEEPEST, ResidualEncoderStages

TORCH_FILE, ONNX_FILE = "encoder.pt2", "encoder.onnx"
LONGEST = 4096
"""Largest side in voxels, and largest batch, that the graph accepts."""
_EXAMPLE = (2, 1, 64, 72, 80)
_NOTES = (
    "The graph takes HU (float32, B 1 X Y Z) at the spacing and in the order of `preprocessing.json`; the HU window is inside.",
    "It processes its input in one pass, so a whole scan needs more memory than in dagman, which processes it in tiles.",
)


def write_torch_export(encoder: Encoder, folder: Path) -> Exported:
    """Write `encoder.pt2`.

    Raises:
        EncoderError: The backbone cannot be traced.
    """
    values = {FILE: json.dumps(describe_preprocessing(encoder))}
    torch.export.save(trace_encoder(encoder), folder / TORCH_FILE, extra_files=values)
    usage = f"""import torch

graph = torch.export.load("{TORCH_FILE}").module()
x1, x2, x3, x4 = graph(torch.zeros(1, 1, 96, 80, 72))  # HU; any batch and any sides
"""
    return Exported(files=(TORCH_FILE,), usage=usage, left_out=_list_left_out(encoder), notes=list_notes(encoder))


def write_onnx(encoder: Encoder, folder: Path) -> Exported:
    """Write `encoder.onnx`.

    Raises:
        EncoderError: The backbone cannot be traced.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtraError("onnx with onnxscript", "onnx") from None
    model = convert_graph(trace_encoder(encoder), maps=4)
    entry = model.metadata_props.add()
    entry.key, entry.value = FILE, json.dumps(describe_preprocessing(encoder))
    onnx.save(model, folder / ONNX_FILE)
    usage = f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX_FILE}")
x1, x2, x3, x4 = session.run(None, {{"hu": np.zeros((1, 1, 96, 80, 72), dtype=np.float32)}})  # HU; any batch and any sides
"""
    return Exported(files=(ONNX_FILE,), usage=usage, left_out=_list_left_out(encoder), notes=list_notes(encoder))


def convert_graph(graph: torch.export.ExportedProgram, *, maps: int) -> Any:
    """Convert a traced graph with `maps` outputs to an ONNX model (onnx.ModelProto), from `hu` to `x1`, `x2`, ..."""
    with warnings.catch_warnings():
        # torch's exporter uses functions that torch itself deprecates.
        warnings.simplefilter("ignore")
        names = [f"x{number}" for number in range(1, maps + 1)]
        program = torch.onnx.export(graph, dynamo=True, input_names=["hu"], output_names=names, verbose=False)
    if program is None:
        raise EncoderError("torch.onnx gave no graph")
    return program.model_proto


def trace_encoder(encoder: Encoder) -> torch.export.ExportedProgram:
    """Trace an encoder as one graph from HU to the four maps, with dynamic batch and sides.

    Raises:
        EncoderError: The backbone cannot be traced, or was trained only on MR.
    """
    if encoder.config.modalities == ("MR",):
        raise EncoderError("was trained only on MR; graphs need HU", where=encoder.source, do="Use --to hf")
    return trace_graph(make_graph(encoder))


def trace_graph(graph: nn.Module) -> torch.export.ExportedProgram:
    """Trace a module as one graph with dynamic batch and sides."""
    axes: dict[int, Any] = {2: _open("x"), 3: _open("y"), 4: _open("z"), 0: torch.export.Dim("batch", min=1, max=LONGEST)}
    # Otherwise torch assumes sides longer than one token wherever the memory layout depends on it.
    with torch.no_grad(), cast(Any, _config).patch(backed_size_oblivious=True):
        return torch.export.export(graph.eval(), (torch.zeros(_EXAMPLE),), dynamic_shapes={"hu": axes})


def _open(name: str) -> Any:
    return torch.export.Dim(name, min=2, max=LONGEST)


def list_notes(encoder: Encoder) -> tuple[str, ...]:
    """List what users of an encoder's graph have to know, in sentences."""
    if not isinstance(encoder.network.encoder, ResidualEncoderStages):
        return _NOTES
    return (
        *_NOTES,
        f"Give it views with a side longer than {DEEPEST} voxels: smaller ones leave instance norm a single voxel of x4. dagman "
        "refuses them; the graph does not, and its x4 is then of no use.",
    )


def _list_left_out(encoder: Encoder) -> tuple[str, ...]:
    return ("the semantic attention",) if encoder.network.semantic_attention is not None else ()
