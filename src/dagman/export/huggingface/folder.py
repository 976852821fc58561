"""Write a folder that `AutoModel` and `AutoImageProcessor` load with `trust_remote_code=True`, without dagman."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dagman import __version__, errors
from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import FORMAT
from dagman.encoder.hub import upload_folder
from dagman.encoder.loading import load_encoder
from dagman.errors import MissingExtraError
from dagman.export.assembly import NetworkCode, Part, assemble_module, list_semantic_parts
from dagman.export.backbones import need_code
from dagman.export.forms import Exported, export_encoder
from dagman.export.preprocessing import describe_preprocessing, state_preprocessing
from dagman.records.counts import list_some
from dagman.scans import affine
from dagman.store import body, resampling

MODEL_CODE, PROCESSOR_CODE = "modeling_dagman.py", "image_processing_dagman.py"
_HEADER = """---
library_name: transformers
tags: [medical-imaging, computed-tomography, self-supervised, {backbone}, 3d]
license: unknown  # to be set by whoever publishes these weights
---
"""
_USAGE = """from transformers import AutoImageProcessor, AutoModel

folder = "."  # or OWNER/NAME on a hub
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
inputs = processor("scan.nii.gz")  # or an array in HU with its affine: processor(voxels, affine)
maps = model(inputs["pixel_values"]).feature_maps  # four, of {strides} voxels a token
"""
_SCAN_NOTE = "A scan is processed in one pass: its features equal dagman's, except where dagman uses tiles (beyond 2 GiB)."
_VIEW_NOTE = (
    "A scan is processed in one pass, with interpolated position embeddings; dagman processes scans in tiles of the training "
    "view for a ViT: crop views of that side for equal features."
)


def write_folder(encoder: Encoder, folder: Path) -> Exported:
    """Write the weights, configuration and code of an encoder.

    Raises:
        EncoderError: The backbone has no code that runs without dagman.
        MissingExtraError: transformers is not installed.
    """
    backbone, code = encoder.network.encoder, need_code(encoder.config.backbone)
    try:
        from dagman.export.huggingface import modeling, processing
    except ImportError:
        raise MissingExtraError("transformers", "hub") from None
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "preprocessing": state_preprocessing(encoder)})
    _write_json(folder / "config.json", _describe_model(encoder))
    _write_json(folder / "preprocessor_config.json", _describe_processor(encoder))
    made = f"Assembled by dagman {__version__} from its own source (Apache-2.0); needs"
    needed = list_some([*code.packages, "torch", "transformers"])
    text = assemble_module(
        f"The encoder as a model of transformers. {made} {needed}.",
        [*code.parts, *(part for part in list_semantic_parts() if part not in code.parts), Part(module=modeling)],
        code.packages,
    )
    (folder / MODEL_CODE).write_text(text, encoding="utf-8")
    text = assemble_module(
        f"The preparation of scans as an image processor of transformers. {made} numpy, scipy, nibabel, torch and transformers.",
        [
            Part(module=errors, names=("DagmanError", "_rebuild", "ScanError")),
            Part(module=affine),
            Part(module=body),
            Part(module=resampling),
            Part(module=processing),
        ],
    )
    (folder / PROCESSOR_CODE).write_text(text, encoding="utf-8")
    return Exported(
        files=("model.safetensors", "config.json", MODEL_CODE, "preprocessor_config.json", PROCESSOR_CODE),
        usage=_USAGE.format(strides=list_some(backbone.strides)),
        notes=(_VIEW_NOTE if backbone.view else _SCAN_NOTE, *_list_packages(code)),
        header=_HEADER.format(backbone=encoder.config.backbone.partition(":")[0]),
    )


def from_pretrained(name: str | Path, *, device: str = "auto") -> Encoder:
    """Load the encoder of a local folder, or of OWNER/NAME on a hub, like `load_encoder("hub:OWNER/NAME")`."""
    return load_encoder(name if Path(name).is_dir() else f"hub:{name}", device=device)


def save_pretrained(encoder: Encoder, folder: str | Path) -> Exported:
    """Write an encoder and its model card to a folder, which `from_pretrained` reads here and in transformers."""
    return export_encoder(encoder, "hf", folder)


def push_to_hub(encoder: Encoder, name: str, *, private: bool = True) -> str:
    """Upload an encoder to OWNER/NAME on a hub, and return its address.

    Raises:
        EncoderError: Network connections are not allowed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        save_pretrained(encoder, Path(temporary) / "encoder")
        return upload_folder(Path(temporary) / "encoder", name, private=private)


def _describe_model(encoder: Encoder) -> dict[str, Any]:
    """Describe an encoder for config.json, with the entries of transformers and of dagman, so that both can read the folder."""
    return {
        "model_type": "dagman",
        "architectures": ["DagmanModel"],
        "auto_map": {"AutoConfig": "modeling_dagman.DagmanConfig", "AutoModel": "modeling_dagman.DagmanModel"},
        "format": FORMAT,
        "dagman": __version__,
        **dataclasses.asdict(encoder.config),
    }


def _describe_processor(encoder: Encoder) -> dict[str, Any]:
    values = describe_preprocessing(encoder)
    return {
        "image_processor_type": "DagmanImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_dagman.DagmanImageProcessor"},
        "spacing": encoder.config.spacing,
        "low": values["intensity"]["low"],
        "high": values["intensity"]["high"],
        "pad": values["padding"]["value"],
        "side": values["smallest_side"],
        "multiple": values["padding"]["multiple_of"],
        "crop_body": encoder.config.crop_body,
        "modality": "MR" if encoder.config.modalities == ("MR",) else "CT",
    }


def _list_packages(code: NetworkCode) -> tuple[str, ...]:
    return (f"Its network needs {list_some(code.packages)} installed beside transformers.",) if code.packages else ()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
