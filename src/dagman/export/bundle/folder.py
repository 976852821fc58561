"""Write the folder of a bundle: `configs/` (metadata.json, inference.json), `models/`, and `scripts/` with the network's code."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dagman import __version__
from dagman.encoder import tiling
from dagman.errors import TaskError
from dagman.export.assembly import Part, assemble_module
from dagman.export.backbones import need_code
from dagman.export.bundle import network
from dagman.export.contents import NOT_FOR
from dagman.export.forms import Exported
from dagman.export.preprocessing import state_preprocessing
from dagman.records.counts import list_some
from dagman.tasks.segment import channels_last, unet, winograd
from dagman.tasks.segment.model import BATCH_CPU, OVERLAP, SegmentationModel

_SCRIPT = "scripts.dagman_network"
_USAGE = """python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS --output_dir OUT
"""
_NOTES = (
    "Run it from this folder. SCANS is a folder of `.nii.gz` files; for each, a label map of the same name is written to OUT, on "
    "the grid of the scan.",
    "It needs MONAI (with fire, nibabel and safetensors), but not dagman. MONAI resamples without anti-aliasing, and does not crop "
    "the air around the body, so its windows have other positions: its label maps are not identical to those of `dagman predict`.",
)


def write_bundle(model: SegmentationModel, folder: Path) -> Exported:
    """Write the bundle of a segmentation model.

    Raises:
        EncoderError: The backbone has no code that runs without dagman.
        TaskError: The model was trained on MR; the bundle scales intensities in HU.
    """
    config = model.encoder.config
    code = need_code(config.backbone)
    if config.modalities == ("MR",):
        raise TaskError("was trained on MR; bundles need HU", where=model.encoder.source, do="Use dagman predict")
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir()
    state = {name: value.detach().to("cpu").clone().contiguous() for name, value in model.network.state_dict().items()}
    state.pop("encoder.mask_token", None)
    save_file(
        state,
        folder / "models" / "model.safetensors",
        metadata={"format": "pt", "preprocessing": state_preprocessing(model.encoder)},
    )
    values = {"backbone": config.backbone, "shape": dataclasses.asdict(config.shape), "classes": model.network.classes}
    _write_json(folder / "models" / "network.json", values)
    needed = list_some(dict.fromkeys([*code.packages, "torch", "monai"]))
    text = assemble_module(
        f"The network of this bundle. Assembled by dagman {__version__} from its own source (Apache-2.0); needs {needed}.",
        [
            *code.parts,
            Part(module=winograd),
            Part(module=channels_last),
            Part(module=unet),
            Part(module=tiling, names=("SPREAD", "FLOOR", "FLOOR_HALF", "weight_tile", "_weight_axis")),
            Part(module=network),
        ],
        code.packages,
    )
    (folder / "scripts" / "__init__.py").write_text('"""Code of the bundle."""\n', encoding="utf-8")
    (folder / "scripts" / "dagman_network.py").write_text(text, encoding="utf-8")
    _write_json(folder / "configs" / "metadata.json", _describe_bundle(model))
    _write_json(folder / "configs" / "inference.json", _configure_inference(model))
    files = ("configs/metadata.json", "configs/inference.json", "models/model.safetensors", "scripts/dagman_network.py")
    return Exported(files=files, usage=_USAGE, notes=_NOTES, language="sh")


def _describe_bundle(model: SegmentationModel) -> dict[str, Any]:
    """Describe the bundle for metadata.json, following MONAI's schema of 2022-03-24 (monai.bundle)."""
    side, names = [model.side] * 3, ["background", *(structure.name for structure in model.structures)]
    channels = {str(number): name for number, name in enumerate(names)}
    view = {"num_channels": 1, "spatial_shape": side, "dtype": "float32", "value_range": [0, 1], "is_patch_data": True}
    image = {"type": "image", "format": "hounsfield", "modality": "CT", **view, "channel_def": {"0": "image"}}
    prediction = {"type": "image", "format": "segmentation", **view, "num_channels": len(names), "channel_def": channels}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported"},
        "monai_version": _find_version("monai", "1.6.1"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: _find_version(name, "") for name in ("nibabel", "safetensors")},
        "name": "dagman segmentation",
        "task": f"Segmentation of {', '.join(names[1:])}",
        "description": f"A segmentation network on {model.encoder.describe()}.",
        "authors": "To be set by whoever publishes it",
        "copyright": "To be set by whoever publishes it",
        "intended_use": f"Research. Not for: {NOT_FOR[0]}",
        "preprocessing": state_preprocessing(model.encoder),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }


def _configure_inference(model: SegmentationModel) -> dict[str, Any]:
    config = model.encoder.config
    values = [0, *(structure.values[0] for structure in model.structures)]
    kind = "uint8" if max(values) < 256 else "uint16"
    scaling = {"a_min": config.low, "a_max": config.high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    window = {"roi_size": [model.side] * 3, "sw_batch_size": BATCH_CPU, "overlap": OVERLAP, "mode": "gaussian", "cval": 0.0}
    return {
        "imports": [
            "$import glob",
            "$import os",
            "$import numpy",
            "$import torch",
            f"$from {_SCRIPT} import {network.label_scans.__name__}",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/out'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "network_def": {"_target_": f"{_SCRIPT}.load_network", "folder": "$@bundle_root + '/models'"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [config.spacing] * 3, "mode": "bilinear"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", **scaling},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "$[{'image': path} for path in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", **window},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": list(range(len(values))), "target_labels": values},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "separate_folder": False,
                    "resample": False,
                    "output_dtype": f"$numpy.{kind}",
                },
            ],
        },
        "initialize": [],
        "run": ["$label_scans(@dataloader, @inferer, @network, @postprocessing)"],
        "finalize": [],
    }


def _find_version(package: str, otherwise: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return otherwise


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
