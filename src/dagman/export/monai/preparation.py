"""Metadata of the files for MONAI, and the code of a model card that reads a scan with MONAI."""

from __future__ import annotations

from dagman.encoder.encoder import Encoder
from dagman.export.preprocessing import describe_preprocessing

_UNFILTERED = (
    "MONAI's Spacing does not anti-alias when downsampling; dagman does. If the two must agree exactly, use scans prepared by "
    "dagman."
)


def state_preparation(encoder: Encoder) -> dict[str, str]:
    """Describe the preprocessing for a file's metadata: entries that dagman's importer reads, and a sentence for people."""
    c, values = encoder.config, describe_preprocessing(encoder)
    return {
        "spacing": f"{c.spacing:g}",
        "low": f"{c.low:g}",
        "high": f"{c.high:g}",
        "view": str(c.view),
        "orientation": c.orientation,
        "padding": f"{values['padding']['value']:g}",
        "crop_body": "yes" if c.crop_body else "no",
        "modalities": ",".join(c.modalities),
        "preprocessing": values["sentence"],
    }


def show_reading(encoder: Encoder, *, orientation: str = "RAS") -> tuple[str, str]:
    """Write code for a model card: a line of imports, and a line that defines `read`, which loads and scales a scan."""
    c = encoder.config
    scaling, ranges = "ScaleIntensityRange", f"a_min={c.low:g}, a_max={c.high:g}, b_min=0.0, b_max=1.0, clip=True"
    if c.modalities == ("MR",):
        scaling, ranges = "ScaleIntensityRangePercentiles", "lower=0.5, upper=99.5, b_min=0.0, b_max=1.0, clip=True"
    imports = f"from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, {scaling}, Spacing"
    steps = f'LoadImage(), EnsureChannelFirst(), Orientation("{orientation}"), Spacing({c.spacing:g}), {scaling}({ranges})'
    return imports, f"read = Compose([{steps}])"


def state_limits(*own: str) -> tuple[str, ...]:
    """List the limitations of a network, followed by those of all networks."""
    return (*own, _UNFILTERED)


def list_left_out(encoder: Encoder) -> tuple[str, ...]:
    """List the parts of an encoder that no network of MONAI can hold."""
    left_out: tuple[str, ...] = ("the semantic attention",) if encoder.network.semantic_attention is not None else ()
    return (*left_out, "the mask token") if getattr(encoder.network.encoder, "mask_token", None) is not None else left_out
