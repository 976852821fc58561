"""A folder for nnU-Net 2.8 as on PyPI: weights, a trainer in one file, and a script that adapts its plans."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dagman import __version__
from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.export.assembly import Part, assemble_module, list_swin_parts
from dagman.export.forms import Exported
from dagman.export.nnunet import plans
from dagman.export.nnunet.checkpoint import FILE as CHECKPOINT
from dagman.export.nnunet.checkpoint import write_checkpoint
from dagman.export.preprocessing import state_preprocessing
from dagman.model import SwinEncoder
from dagman.tasks.segment import channels_last, unet

WEIGHTS, TRAINER, SCRIPT, NETWORK = "encoder.safetensors", "dagman_trainer.py", "make_plans.py", "network.json"
_USAGE = """nnUNetv2_plan_and_preprocess -d 1 --no_pp
python make_plans.py 1
nnUNetv2_preprocess -d 1 -plans_name dagmanPlans -c 3d_fullres
export nnUNet_extTrainer=$PWD  # also where the trained model predicts
nnUNetv2_train 1 3d_fullres 0 -tr DagmanTrainer -p dagmanPlans
nnUNetv2_predict -d 1 -i IMAGES -o OUT -f 0 -c 3d_fullres -tr DagmanTrainer -p dagmanPlans
"""
_NOTES = (
    "nnU-Net turns the images to RAS (NibabelIOWithReorient), brings them to the encoder's spacing, and its HU window to 0 to 1. "
    "It resamples by cubic splines without a filter; dagman filters before it makes voxels larger.",
    "The decoder starts from random weights. Learning rate and warm-up are a start; they were not tuned against nnU-Net's own.",
    f"{CHECKPOINT} is the same encoder in nnssl's layout. nnU-Net's master and nnssl know no Swin, and build none from it.",
)


def write_folder(encoder: Encoder, folder: Path) -> Exported:
    """Write weights, trainer and script; raises EncoderError for an encoder that is no Swin of dagman's, or that takes MR alone."""
    backbone = encoder.network.encoder
    if not isinstance(backbone, SwinEncoder):
        what = f"is a {encoder.config.backbone}; this form takes dagman's own Swin"
        raise EncoderError(what, where=encoder.source, do="Export a run of the backbone swin")
    if encoder.config.modalities == ("MR",):
        raise EncoderError("was trained on MR alone; these plans are made for HU", where=encoder.source, do="Use --to hf")
    state = {name: _own(value) for name, value in backbone.state_dict().items() if name != "mask_token"}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt", "preprocessing": state_preprocessing(encoder)})
    made = f"Assembled by dagman {__version__} from its own source (Apache-2.0); needs nnunetv2 2.8."
    code = assemble_module(
        f"A trainer of nnU-Net for an encoder of dagman; see README.md. {made}",
        [
            *list_swin_parts("normalise_features", "is_decayed"),
            Part(module=channels_last),
            Part(module=unet),
            Part(module=Path(__file__).with_name("trainer.py")),
        ],
    )
    (folder / TRAINER).write_text(code, encoding="utf-8")
    (folder / SCRIPT).write_text(inspect.getsource(plans), encoding="utf-8")
    config = encoder.config
    values = {
        "shape": dataclasses.asdict(config.shape),
        "spacing": config.spacing,
        "low": config.low,
        "high": config.high,
        "view": max(plans.STRIDE, config.view // plans.STRIDE * plans.STRIDE),
        "sentence": state_preprocessing(encoder),
    }
    (folder / NETWORK).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_checkpoint(encoder, state, folder / CHECKPOINT)
    left_out: tuple[str, ...] = ("the semantic attention",) if encoder.network.semantic_attention is not None else ()
    left_out += ("the mask token",) if backbone.mask_token is not None else ()
    files = (WEIGHTS, TRAINER, SCRIPT, NETWORK, CHECKPOINT)
    return Exported(files=files, usage=_USAGE, left_out=left_out, notes=_NOTES, language="sh")


def _own(value: Tensor) -> Tensor:
    return value.detach().to("cpu").clone().contiguous()
