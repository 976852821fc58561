"""Export CT-FM's SegResNet as the encoder of MONAI's SegResNetDS, from which it was imported."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from safetensors.torch import save_file

from dagman.encoder.encoder import Encoder
from dagman.export.forms import Exported
from dagman.export.monai.preparation import list_left_out, show_reading, state_limits, state_preparation
from dagman.model.foreign.segresnet import DEPTHS, SegResNetStages

FILE = "segresnet.safetensors"


def write_segresnet(encoder: Encoder, folder: Path) -> Exported:
    """Write the weights of a SegResNet's encoder under MONAI's names."""
    backbone = cast(SegResNetStages, encoder.network.encoder)
    state = {name: value.detach().to("cpu").clone().contiguous() for name, value in backbone.net.state_dict().items()}
    # The orientation in the metadata stays RAS: the network reads SPL, but the backbone in dagman reorients views itself.
    save_file(state, folder / FILE, metadata={"format": "pt", **state_preparation(encoder)})
    notes = state_limits(
        "It expects scans in SPL order, and sides that are multiples of 16; dagman reorients and pads its views accordingly.",
        "dagman uses the last four of its five maps, at strides 2, 4, 8 and 16.",
    )
    return Exported(files=(FILE,), usage=_show_usage(encoder), left_out=list_left_out(encoder), notes=notes)


def _show_usage(encoder: Encoder) -> str:
    shape = encoder.config.shape
    imports, reading = show_reading(encoder, orientation="SPL")
    blocks = (DEPTHS[0], *shape.depths)
    return f"""from monai.networks.nets import SegResNetDS
{imports}
from safetensors.torch import load_file

net = SegResNetDS(init_filters={shape.embed}, in_channels=1, out_channels=2, blocks_down={blocks})
net.encoder.load_state_dict(load_file("{FILE}"))  # strict: every weight has its place
{reading}
"""
