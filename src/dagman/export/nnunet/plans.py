"""Write nnU-Net plans with the preprocessing that an encoder was trained with. Needs only Python.

This is `make_plans.py` of an export. First run `nnUNetv2_plan_and_preprocess -d DATASET --no_pp`, then this script, then
`nnUNetv2_preprocess -d DATASET -plans_name dagmanPlans -c 3d_fullres`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

CONFIGURATION = "3d_fullres"
READER = "NibabelIOWithReorient"
"""Reorients images to RAS and returns them as Z Y X; the plans transpose them to X Y Z."""
ENDINGS = (".nii", ".nii.gz")
VARIABLE = "nnUNet_preprocessed"
LEAST_WINDOW = 0.05
STRIDE = 32


def adapt_plans(
    plans: dict[str, Any], dataset: dict[str, Any], network: dict[str, Any], *, name: str, patch: int | None = None, batch: int = 2
) -> dict[str, Any]:
    """Adapt plans to the network, the HU window, the spacing and the axes of an encoder; the given plans are not changed.

    Args:
        plans: nnU-Net's plans.
        dataset: Contents of dataset.json.
        network: Contents of `network.json` of the export.
        name: Name of the new plans.
        patch: Side of a patch in voxels; None for the encoder's view.
        batch: Patches per batch.

    Raises:
        ValueError: The data or the patch do not suit the encoder.
    """
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    if [str(channel).upper() for channel in channels.values()] != ["CT"]:
        raise ValueError(f"the channels of dataset.json are {', '.join(map(str, channels.values()))}; this encoder takes one, CT")
    if dataset.get("file_ending") not in ENDINGS:
        raise ValueError(f"the images are {dataset.get('file_ending')}; nnU-Net can reorient only {' and '.join(ENDINGS)} to RAS")
    if CONFIGURATION not in plans["configurations"]:
        raise ValueError(f"the plans have no configuration {CONFIGURATION}; these data are too flat for a 3D network")
    side = patch or network["view"]
    if side < STRIDE or side % STRIDE:
        raise ValueError(f"a patch of {side} voxels is not a multiple of {STRIDE}")
    low, high, spacing = network["low"], network["high"], network["spacing"]
    mean, std = network["mean"], network["std"]
    architecture = network["architecture"]
    if "window" in architecture["arch_kwargs"]:
        window = find_window(plans["foreground_intensity_properties_per_channel"]["0"], low, high)
        architecture = {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], "window": window}}
    turned = [plans["transpose_backward"][axis] for axis in (2, 1, 0)]
    own = plans["original_median_spacing_after_transp"], plans["original_median_shape_after_transp"]
    steps, sizes = ([values[axis] for axis in turned] for values in own)
    configuration = {
        **plans["configurations"][CONFIGURATION],
        "data_identifier": f"{name}_{CONFIGURATION}",
        "spacing": [spacing] * 3,
        "median_image_size_in_voxels": [round(size * step / spacing) for size, step in zip(sizes, steps, strict=True)],
        "patch_size": [side] * 3,
        "batch_size": batch,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
    }
    # CTNormalization clips at the percentiles, subtracts the mean and divides by std.
    values = {
        "mean": mean,
        "std": std,
        "percentile_00_5": low,
        "percentile_99_5": high,
        "min": low,
        "max": high,
        "median": mean,
    }
    return {
        **plans,
        "plans_name": name,
        "image_reader_writer": READER,
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "original_median_spacing_after_transp": steps,
        "original_median_shape_after_transp": sizes,
        "foreground_intensity_properties_per_channel": {"0": values},
        "configurations": {CONFIGURATION: configuration},
    }


def find_window(foreground: dict[str, float], low: float, high: float) -> list[float]:
    """Find the range of the structures' intensities in [0, 1], extended by half its width on each side.

    The decoder gets the view a second time, scaled to this range.
    """
    first, last = ((foreground[key] - low) / (high - low) for key in ("percentile_00_5", "percentile_99_5"))
    more = max((last - first) / 2, LEAST_WINDOW)
    start, stop = max(first - more, 0.0), min(last + more, 1.0)
    return [start, stop] if stop - start >= LEAST_WINDOW else [0.0, 1.0]


def write_plans(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with code 2 and a one-line message on errors."""
    parser = argparse.ArgumentParser(description="Write plans of nnU-Net for an encoder of dagman.")
    parser.add_argument("dataset", help="Number or name of the dataset, planned by nnUNetv2_plan_and_preprocess --no_pp.")
    parser.add_argument("--plans", default="nnUNetPlans", help="Name of the plans to start from.")
    parser.add_argument("--name", default="dagmanPlans", help="Name of the plans to write.")
    parser.add_argument("--patch", type=int, help="Side of a patch in voxels, a multiple of 32. Default: the encoder's view.")
    parser.add_argument("--batch", type=int, default=2, help="Patches in a batch.")
    given = parser.parse_args(arguments)
    place = os.environ.get(VARIABLE)
    if not place:
        parser.error(f"{VARIABLE} is not set. Set it to the folder that nnU-Net preprocesses into.")
    named = f"Dataset{int(given.dataset):03d}_*" if given.dataset.isdigit() else given.dataset
    folder = next(iter(sorted(Path(place).glob(named))), None)
    source = None if folder is None else folder / f"{given.plans}.json"
    if folder is None or source is None or not source.is_file():
        parser.error(
            f"{Path(place) / named} does not contain {given.plans}.json. Run nnUNetv2_plan_and_preprocess -d ... --no_pp first."
        )
    try:
        plans, dataset = (json.loads(path.read_text(encoding="utf-8")) for path in (source, folder / "dataset.json"))
        network = json.loads(Path(__file__).with_name("network.json").read_text(encoding="utf-8"))
        adapted = adapt_plans(plans, dataset, network, name=given.name, patch=given.patch, batch=given.batch)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{folder.name}: {error}.")
    (folder / f"{given.name}.json").write_text(json.dumps(adapted, indent=4) + "\n", encoding="utf-8")
    command = f"nnUNetv2_preprocess -d {given.dataset} -plans_name {given.name} -c {CONFIGURATION}"
    print(f"written: {folder / given.name}.json. Next: {command}")


if __name__ == "__main__":
    write_plans()
