"""An encoder as one graph for views of any size: torch.export's, and ONNX (extra `onnx`)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError, MissingExtraError
from dagman.export.forms import Exported
from dagman.export.preprocessing import FILE, describe_preprocessing
from dagman.export.swin_graph import FeatureGraph
from dagman.export.vit_graph import ViTGraph
from dagman.model import SwinEncoder
from dagman.model.vit import ViTEncoder

TORCH_FILE, ONNX_FILE = "encoder.pt2", "encoder.onnx"
LONGEST = 4096
"""Voxels along a side, and views of a batch, that the graph admits."""
_EXAMPLE = (2, 1, 64, 72, 80)
_NOTES = (
    "The graph takes HU (float32, B 1 X Y Z) at the spacing and in the order of `preprocessing.json`; the HU window is inside.",
    "It reads a view in one pass: a whole scan needs more memory than in dagman, which goes through it in parts.",
)


def write_torch_export(encoder: Encoder, folder: Path) -> Exported:
    """Write `encoder.pt2`; raises EncoderError for a backbone of others."""
    values = {FILE: json.dumps(describe_preprocessing(encoder))}
    torch.export.save(trace_encoder(encoder), folder / TORCH_FILE, extra_files=values)
    usage = f"""import torch

graph = torch.export.load("{TORCH_FILE}").module()
x1, x2, x3, x4 = graph(torch.zeros(1, 1, 96, 80, 72))  # HU; any batch and any sides
"""
    return Exported(files=(TORCH_FILE,), usage=usage, left_out=_list_left_out(encoder), notes=_NOTES)


def write_onnx(encoder: Encoder, folder: Path) -> Exported:
    """Write `encoder.onnx`; raises as `write_torch_export`, and MissingExtraError without onnx and onnxscript."""
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
    return Exported(files=(ONNX_FILE,), usage=usage, left_out=_list_left_out(encoder), notes=_NOTES)


def convert_graph(graph: torch.export.ExportedProgram, *, maps: int) -> Any:
    """A traced graph with so many maps as an ONNX model (onnx.ModelProto), from `hu` to `x1`, `x2`, ..."""
    with warnings.catch_warnings():
        # torch's own exporter uses what torch deprecates.
        warnings.simplefilter("ignore")
        names = [f"x{number}" for number in range(1, maps + 1)]
        program = torch.onnx.export(graph, dynamo=True, input_names=["hu"], output_names=names, verbose=False)
    if program is None:
        raise EncoderError("torch.onnx gave no graph")
    return program.model_proto


def trace_encoder(encoder: Encoder) -> torch.export.ExportedProgram:
    """One graph from HU to the four maps, with batch and sides left open; raises EncoderError as `write_torch_export`."""
    backbone = encoder.network.encoder
    if not isinstance(backbone, SwinEncoder | ViTEncoder):
        what = f"is a {encoder.config.backbone}; graphs are made of dagman's own Swin and of a ViT"
        raise EncoderError(what, where=encoder.source, do="Export a run of the backbone swin or vit")
    if encoder.config.modalities == ("MR",):
        raise EncoderError("was trained on MR alone; graphs are made for HU", where=encoder.source, do="Use --to hf")
    low, high = encoder.config.low, encoder.config.high
    return trace_graph(FeatureGraph(backbone, low, high) if isinstance(backbone, SwinEncoder) else ViTGraph(backbone, low, high))


def trace_graph(graph: FeatureGraph | ViTGraph) -> torch.export.ExportedProgram:
    """One graph with batch and sides left open."""
    axes: dict[int, Any] = {2: _open("x"), 3: _open("y"), 4: _open("z"), 0: torch.export.Dim("batch", min=1, max=LONGEST)}
    with torch.no_grad():
        return torch.export.export(graph.eval(), (torch.zeros(_EXAMPLE),), dynamic_shapes={"hu": axes})


def _open(name: str) -> Any:
    return torch.export.Dim(name, min=2, max=LONGEST)


def _list_left_out(encoder: Encoder) -> tuple[str, ...]:
    return ("the semantic attention",) if encoder.network.semantic_attention is not None else ()
