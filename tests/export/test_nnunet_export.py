"""Proves that the folder for nnU-Net holds the encoder whole, builds its network, and adapts plans; without nnU-Net.

That nnU-Net itself trains with it: test_nnunet_training.py, where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.export.forms import export_encoder
from dagman.export.nnunet.plans import adapt_plans
from dagman.model import to_unit_range

_DATASET = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


@pytest.fixture(scope="module")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nnunet") / "out"
    export_encoder(encoder, "nnunet", out)
    return out


@pytest.fixture
def plans() -> dict[str, Any]:
    """As nnU-Net 2.8.1 writes them, as far as they are read: Z is the coarse axis and stands in the middle by its own order."""
    return {
        "dataset_name": "Dataset001_Body",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "original_median_spacing_after_transp": [5.0, 3.0, 1.0],
        "original_median_shape_after_transp": [20, 40, 80],
        "foreground_intensity_properties_per_channel": {"0": {"percentile_00_5": -100.0, "percentile_99_5": 200.0, "mean": 9.0}},
        "configurations": {"2d": {}, "3d_fullres": {"spacing": [5.0, 1.0, 1.0], "resampling_fn_data": "resample_data_or_seg"}},
    }


@pytest.fixture
def network(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    return values


def test_the_trainers_file_builds_the_network_with_the_encoders_features(
    folder: Path, encoder: Encoder, make_view, plans: dict[str, Any], network: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    # nnU-Net's own trainer, of which no line is run here, and no dagman.
    names = "nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer", "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[names[-1]], "nnUNetTrainer", object, raising=False)
    monkeypatch.setitem(sys.modules, "dagman", None)
    assert "from dagman" not in (folder / "dagman_trainer.py").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("dagman_trainer", folder / "dagman_trainer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dagman_trainer", module)
    spec.loader.exec_module(module)

    adapted = adapt_plans(plans, _DATASET, network, name="dagmanPlans")["configurations"]["3d_fullres"]["architecture"]
    configuration = ModuleType("configuration")
    configuration.network_arch_init_kwargs = adapted["arch_kwargs"]  # type: ignore[attr-defined]
    built = module.DagmanTrainer.build_network_architecture(None, configuration, 1, 3).eval()
    built.encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    # As CTNormalization leaves them, and then as splines do: beyond 0 and 1.
    hu = make_view(32, 64, 32)
    low, high = encoder.config.low, encoder.config.high
    view = (hu.clamp(low, high) - low) / (high - low)
    with torch.no_grad():
        for wanted, got in zip(encoder.features(hu), built.encoder(view), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        logits = built(view)
        assert logits.shape == (1, 3, 32, 64, 32)
        beyond = torch.where(view == 0, -0.2, torch.where(view == 1, 1.3, view))
        assert torch.equal(built(beyond), logits)
    with pytest.raises(RuntimeError, match="takes one channel"):
        module.DagmanTrainer.build_network_architecture(None, configuration, 2, 3)


def test_normalisation_by_the_plans_is_the_encoders_window(plans: dict[str, Any], network: dict[str, Any], encoder: Encoder):
    adapted = adapt_plans(plans, _DATASET, network, name="dagmanPlans")
    values = adapted["foreground_intensity_properties_per_channel"]["0"]
    hu = torch.linspace(-2000, 2000, 401)
    # nnU-Net's CTNormalization, in its order.
    normalised = (hu.clamp(values["percentile_00_5"], values["percentile_99_5"]) - values["mean"]) / values["std"]
    torch.testing.assert_close(normalised, to_unit_range(hu, encoder.config.low, encoder.config.high))
    configuration = adapted["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["CTNormalization"]
    assert configuration["spacing"] == [encoder.config.spacing] * 3
    assert configuration["patch_size"] == [32, 32, 32]
    assert configuration["resampling_fn_data"] == "resample_data_or_seg"
    assert list(adapted["configurations"]) == ["3d_fullres"]
    # The decoder's window: -100 to 200 HU of -900 to 400, half as wide again at both ends.
    assert configuration["architecture"]["arch_kwargs"]["window"] == pytest.approx([650 / 1300, 1250 / 1300])


def test_axes_become_x_y_z(plans: dict[str, Any], network: dict[str, Any]):
    adapted = adapt_plans(plans, _DATASET, network, name="mine", patch=64)
    # Read Z Y X with 3, 5, 1 mm and 40, 20, 80 voxels.
    assert adapted["transpose_forward"] == adapted["transpose_backward"] == [2, 1, 0]
    assert adapted["original_median_spacing_after_transp"] == [1.0, 5.0, 3.0]
    assert adapted["original_median_shape_after_transp"] == [80, 20, 40]
    assert adapted["configurations"]["3d_fullres"]["median_image_size_in_voxels"] == [20, 25, 30]
    assert adapted["image_reader_writer"] == "NibabelIOWithReorient"
    assert plans["plans_name"] == "nnUNetPlans"


@pytest.mark.parametrize(
    ("dataset", "patch", "says"),
    [
        ({"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}, None, "takes one, CT"),
        ({"channel_names": {"0": "CT", "1": "PET"}, "file_ending": ".nii.gz"}, None, "takes one, CT"),
        ({"channel_names": {"0": "CT"}, "file_ending": ".nrrd"}, None, "can reorient only .nii and .nii.gz to RAS"),
        (_DATASET, 48, "not a multiple of 32"),
    ],
)
def test_data_and_patches_that_do_not_suit_are_refused(plans, network, dataset, patch, says):
    with pytest.raises(ValueError, match=says):
        adapt_plans(plans, dataset, network, name="dagmanPlans", patch=patch)


def test_the_script_writes_plans_or_leaves_with_one_line(folder, plans, tmp_path, monkeypatch, capsys):
    names: dict[str, Any] = {"__name__": "make_plans", "__file__": str(folder / "make_plans.py")}
    exec(compile((folder / "make_plans.py").read_text(encoding="utf-8"), "make_plans.py", "exec"), names)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        names["write_plans"](["1"])
    assert "Run nnUNetv2_plan_and_preprocess" in capsys.readouterr().err
    (tmp_path / "Dataset001_Body").mkdir()
    (tmp_path / "Dataset001_Body" / "nnUNetPlans.json").write_text(json.dumps(plans))
    (tmp_path / "Dataset001_Body" / "dataset.json").write_text(json.dumps(_DATASET))
    names["write_plans"](["1", "--batch", "4"])
    written = json.loads((tmp_path / "Dataset001_Body" / "dagmanPlans.json").read_text(encoding="utf-8"))
    assert written["configurations"]["3d_fullres"]["batch_size"] == 4
    assert written["plans_name"] == "dagmanPlans"


def test_the_file_for_nnssls_readers_is_weights_and_plain_values(folder: Path, encoder: Encoder):
    held = torch.load(folder / "nnssl.pth", weights_only=True)
    plan, weights = held["nnssl_adaptation_plan"], held["network_weights"]
    # What nnU-Net's master reads (experiment_planning/like_nnssl.py), and how it takes the weights over (pretrainedTrainer.py).
    assert next(iter(plan["pretrain_plan"]["configurations"].values()))["spacing"] == [encoder.config.spacing] * 3
    assert plan["recommended_downstream_patchsize"] == [32, 32, 32]
    assert (plan["pretrain_num_input_channels"], plan["key_to_lpe"]) == (1, None)
    assert set(plan["architecture_plans"]) == {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
    assert json.loads(json.dumps(plan)) == plan
    for key in ("key_to_encoder", "key_to_stem"):
        part = encoder.network.get_submodule(plan[key])
        part.load_state_dict({n.removeprefix(f"{plan[key]}."): v for n, v in weights.items() if n.startswith(f"{plan[key]}.")})
    assert all(f"{name}.weight" in weights for name in plan["keys_to_in_proj"])


def test_what_is_no_ct_is_refused(tmp_path: Path, encoder: Encoder):
    with pytest.raises(EncoderError, match="was trained only on MR"):
        export_encoder(replace(encoder, config=replace(encoder.config, modalities=("MR",))), "nnunet", tmp_path / "mr")
    assert list(tmp_path.iterdir()) == []
