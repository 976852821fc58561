"""Write an encoder as a checkpoint in nnssl's layout: `network_weights` and `nnssl_adaptation_plan`.

The layout follows nnssl's AdaptationPlan (MIC-DKFZ/nnssl at 7044864, adaptation_planning/adaptation_plan.py) and its reader in
nnU-Net's master (MIC-DKFZ/nnUNet at 0e49508, experiment_planning/like_nnssl.py), and has all keys that they read. Both can build
ResEncL, PlainConvUNet, ResidualEncoderUNet and Primus; so they can build our residual encoder, but not our Swin. The file can be
loaded with torch.load(weights_only=True).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dagman.encoder.encoder import Encoder
from dagman.export.preprocessing import describe_preprocessing

FILE = "nnssl.pth"
ARCHITECTURE = "DagmanSwin"
_CITATION = "Attention-guided masked image modelling with a noisy teacher (DAGMaN), MIDL 2025."


def write_checkpoint(encoder: Encoder, state: dict[str, Tensor], path: Path) -> None:
    """Write the weights of a Swin under its own names, with an adaptation plan."""
    shape = {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(encoder.config.shape).items()
    }
    plan = describe_adaptation(
        encoder,
        {"arch_class_name": ARCHITECTURE, "arch_kwargs": shape, "arch_kwargs_requiring_import": []},
        stem="encoder.patch_projection",
        projections=["encoder.patch_projection"],
    )
    save_checkpoint(encoder, {f"encoder.{name}": value for name, value in state.items()}, plan, path)


def save_checkpoint(encoder: Encoder, weights: dict[str, Tensor], plan: dict[str, Any], path: Path) -> None:
    """Write weights, under the names of the network that will load them, with `nnssl_adaptation_plan`."""
    values = {
        "network_weights": weights,
        "nnssl_adaptation_plan": plan,
        "citations": [{"type": "Pretraining", "name": "dagman", "apa_citations": [_CITATION], "bibtex_citations": []}],
        "trainer_name": "dagman",
        "init_args": {"configuration": "3d"},
        "preprocessing": describe_preprocessing(encoder),
    }
    torch.save(values, path)


def describe_adaptation(encoder: Encoder, architecture: dict[str, Any], *, stem: str, projections: list[str]) -> dict[str, Any]:
    """Describe the adaptation of an encoder (`nnssl_adaptation_plan`) in plain values, so that loading runs no code.

    Args:
        encoder: The encoder.
        architecture: Description of the network.
        stem: Name of the stem of the network.
        projections: Names of its input layers.
    """
    config = encoder.config
    side = [config.view] * 3
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "dagman_3d",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "isotropic",
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {**resampling, "order": 1},
        "spacing": [config.spacing] * 3,
        "patch_size": side,
    }
    plan = {
        "dataset_name": "Dataset000_dagman",
        "plans_name": "dagmanPlans",
        "original_median_spacing_after_transp": [config.spacing] * 3,
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "configurations": {"3d": configuration},
        "experiment_planner_used": "dagman",
    }
    return {
        "architecture_plans": architecture,
        "pretrain_plan": plan,
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": side,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": projections,
        "key_to_lpe": None,
    }
