"""Export a ResNet with group norms as MONAI's ResNet, with which it shares the names of its weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from dagman.encoder.encoder import Encoder
from dagman.export.forms import Exported
from dagman.export.monai.preparation import list_left_out, show_reading, state_limits, state_preparation
from dagman.model.foreign.resnet import GROUPS, PLANES, RESNETS

FILE = "resnet.safetensors"
_STEM = {"stem.0.": "conv1.", "stem.1.": "bn1."}


def write_resnet(encoder: Encoder, folder: Path) -> Exported:
    """Write the weights of a ResNet under MONAI's names."""
    state = {}
    for name, value in encoder.network.encoder.state_dict().items():
        head, _, rest = name.removeprefix("stages.").partition(".")
        new = f"layer{int(head) + 1}.{rest}" if name.startswith("stages.") else name
        for ours, theirs in _STEM.items():
            new = theirs + name.removeprefix(ours) if name.startswith(ours) else new
        if name != "mask_token":
            state[new] = value.detach().to("cpu").clone().contiguous()
    save_file(state, folder / FILE, metadata={"format": "pt", **state_preparation(encoder)})
    notes = state_limits(
        f"MONAI's ResNet supports only batch norm in most layers: the code above replaces it by group norms of {GROUPS} groups."
    )
    return Exported(files=(FILE,), usage=_show_usage(encoder), left_out=list_left_out(encoder), notes=notes)


def _show_usage(encoder: Encoder) -> str:
    size = encoder.config.backbone.partition(":")[2]
    block = "bottleneck" if size == "50" else "basic"
    imports, reading = show_reading(encoder)
    return f"""import torch
from monai.networks.nets import ResNet
{imports}
from safetensors.torch import load_file

net = ResNet("{block}", {list(RESNETS[size])}, {list(PLANES)}, n_input_channels=1, conv1_t_stride=2, feed_forward=False).eval()
for part in list(net.modules()):
    for name, norm in part.named_children():
        if isinstance(norm, torch.nn.BatchNorm3d):
            setattr(part, name, torch.nn.GroupNorm({GROUPS}, norm.num_features))
net.load_state_dict(load_file("{FILE}"))  # strict: every weight has its place
{reading}


def map_view(view):  # maps x1 to x4, at strides 4, 8, 16 and 32
    x, maps = net.maxpool(net.act(net.bn1(net.conv1(view)))), []
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        maps.append(x := layer(x))
    return maps
"""
