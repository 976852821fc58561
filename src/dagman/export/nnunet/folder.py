"""Write a folder for nnU-Net 2.8 from PyPI: weights, a trainer in a single file, and a script that adapts plans."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dagman import __version__
from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.export.assembly import Part, assemble_module
from dagman.export.backbones import need_code
from dagman.export.forms import Exported
from dagman.export.nnunet import plans
from dagman.export.nnunet.checkpoint import FILE as CHECKPOINT
from dagman.export.nnunet.checkpoint import write_checkpoint
from dagman.export.preprocessing import state_preprocessing
from dagman.model import SwinEncoder
from dagman.records.counts import list_some
from dagman.tasks.segment import channels_last, unet, winograd

WEIGHTS, TRAINER, SCRIPT, NETWORK = "encoder.safetensors", "dagman_trainer.py", "make_plans.py", "network.json"
_USAGE = """nnUNetv2_plan_and_preprocess -d 1 --no_pp
python make_plans.py 1
nnUNetv2_preprocess -d 1 -plans_name dagmanPlans -c 3d_fullres
export nnUNet_extTrainer=$PWD  # also where the trained model predicts
nnUNetv2_train 1 3d_fullres 0 -tr DagmanTrainer -p dagmanPlans
nnUNetv2_predict -d 1 -i IMAGES -o OUT -f 0 -c 3d_fullres -tr DagmanTrainer -p dagmanPlans
"""
_NOTES = (
    "nnU-Net reorients the images to RAS (NibabelIOWithReorient), resamples them to the encoder's spacing, and scales its HU "
    "window to 0 to 1. It resamples with cubic splines without anti-aliasing; dagman uses anti-aliasing when downsampling.",
    "The decoder starts from random weights. Learning rate and warm-up are a starting point, and were not tuned against nnU-Net's.",
)
_NNSSL = f"{CHECKPOINT} is the same encoder in nnssl's layout. nnU-Net's master and nnssl cannot build a Swin from it."


def write_trainer_folder(encoder: Encoder, folder: Path) -> Exported:
    """Write weights, trainer and script.

    Raises:
        EncoderError: The backbone has no code that runs without dagman, or the encoder takes only MR.
    """
    refuse_mr(encoder)
    name, backbone = encoder.config.backbone, encoder.network.encoder
    code = need_code(name)
    state = {key: _own(value) for key, value in backbone.state_dict().items() if key != "mask_token"}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt", "preprocessing": state_preprocessing(encoder)})
    needed = list_some([*code.packages, "nnunetv2 2.8"])
    text = assemble_module(
        f"A trainer of nnU-Net for an encoder of dagman; see README.md. Assembled by dagman {__version__} from its own source "
        f"(Apache-2.0); needs {needed}.",
        [
            *code.parts,
            Part(module=winograd),
            Part(module=channels_last),
            Part(module=unet),
            Part(module=Path(__file__).with_name("trainer.py")),
        ],
        code.packages,
    )
    (folder / TRAINER).write_text(text, encoding="utf-8")
    kwargs = {"backbone": name, "shape": dataclasses.asdict(encoder.config.shape), "window": [0.0, 1.0]}
    architecture = {"network_class_name": "dagman_trainer.DagmanNetwork", "arch_kwargs": kwargs, "_kw_requires_import": []}
    write_script(encoder, folder, architecture)
    files: tuple[str, ...] = (WEIGHTS, TRAINER, SCRIPT, NETWORK)
    notes: tuple[str, ...] = _NOTES
    if isinstance(backbone, SwinEncoder):
        write_checkpoint(encoder, state, folder / CHECKPOINT)
        files, notes = (*files, CHECKPOINT), (*notes, _NNSSL)
    if code.packages:
        notes += (f"Install {list_some(code.packages)} in addition to nnU-Net: the encoder uses its layers.",)
    if backbone.view:
        notes += (f"Its positions were learned for patches of {backbone.view} voxels, and are interpolated for others.",)
    left_out: tuple[str, ...] = ("the semantic attention",) if encoder.network.semantic_attention is not None else ()
    left_out += ("the mask token",) if getattr(backbone, "mask_token", None) is not None else ()
    return Exported(files=files, usage=_USAGE, left_out=left_out, notes=notes, language="sh")


def write_script(encoder: Encoder, folder: Path, architecture: dict[str, Any], *, mean: float = 0.0, std: float = 1.0) -> None:
    """Write `make_plans.py` and `network.json`, which it reads.

    Args:
        encoder: The encoder.
        folder: Folder of the export.
        architecture: The network in the format of nnU-Net's plans.
        mean, std: Mean and standard deviation with which the network expects its input to be standardised, on a scale where 0 and 1
            are the ends of the HU window.
    """
    (folder / SCRIPT).write_text(inspect.getsource(plans), encoding="utf-8")
    config = encoder.config
    wide = config.high - config.low
    values = {
        "architecture": architecture,
        "spacing": config.spacing,
        "low": config.low,
        "high": config.high,
        "mean": config.low + mean * wide,
        "std": std * wide,
        "view": max(plans.STRIDE, config.view // plans.STRIDE * plans.STRIDE),
        "sentence": state_preprocessing(encoder),
    }
    (folder / NETWORK).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def refuse_mr(encoder: Encoder) -> None:
    """Raise EncoderError for an encoder that takes only MR, as the plans expect HU."""
    if encoder.config.modalities == ("MR",):
        raise EncoderError("was trained only on MR; these plans are made for HU", where=encoder.source, do="Use --to hf")


def _own(value: Tensor) -> Tensor:
    return value.detach().to("cpu").clone().contiguous()
