"""How each backbone leaves dagman: the writer of each form by the backbone's name, or why there is none.

A new backbone adds its forms by one `register_exports`: a form of its own by the writer's name, the shared ones (transformers,
nnU-Net's trainer, torch.export, ONNX, bundles) by its code and its graph. What is named here is imported when it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from dagman.errors import EncoderError

if TYPE_CHECKING:
    from dagman.encoder.encoder import Encoder
    from dagman.export.assembly import NetworkCode

FORMS = {
    "monai": "MONAI",
    "nnunet": "nnU-Net",
    "torch-export": "torch.export",
    "onnx": "ONNX",
    "hf": "transformers",
}
"""The program that reads each form."""

_BY_CODE = {
    "nnunet": "dagman.export.nnunet.folder:write_trainer_folder",
    "hf": "dagman.export.huggingface.folder:write_folder",
}
_BY_GRAPH = {"torch-export": "dagman.export.graph:write_torch_export", "onnx": "dagman.export.graph:write_onnx"}


@dataclass(frozen=True, kw_only=True)
class Exports:
    """The forms of a kind of backbone; functions are named as "module:function".

    Attributes:
        writers: By form, the function that writes it (an `Encoder` and a folder, to an `Exported`).
        code: What gives the `NetworkCode` of a backbone's name; with it the forms hf and nnunet, and bundles.
        graph: What makes a module from HU to the maps, of the backbone and its low and high; with it torch-export and onnx.
        refused: By form, why there is none, and what to use in its place.
    """

    writers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    graph: str = ""
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def find(self, form: str) -> str:
        """The writer of a form; empty without one."""
        shared = (_BY_CODE if self.code else {}) | (_BY_GRAPH if self.graph else {})
        return "" if form in self.refused else self.writers.get(form) or shared.get(form, "")


EXPORTS: dict[str, Exports] = {}
"""The forms of every kind of backbone, by its name in BACKBONES."""


def register_exports(name: str, exports: Exports) -> None:
    """State the forms of a kind of backbone; a name taken is an error."""
    if name in EXPORTS:
        raise ValueError(f"the forms of the backbone {name!r} are registered already")
    EXPORTS[name] = exports


def find_writer(encoder: Encoder, form: str) -> str:
    """The writer of a form for an encoder; raises EncoderError, which says why and what to use, where its backbone has none."""
    name = encoder.config.backbone
    exports = EXPORTS.get(name.partition(":")[0], Exports())
    writer = exports.find(form)
    if not writer:
        others = [other for other in FORMS if exports.find(other)]
        do = f"Use --to {' or '.join(others)}" if others else "Keep its encoder folder, which dagman reads"
        why, do = exports.refused.get(form, (f"it has no form for {FORMS[form]}", do))
        raise EncoderError(f"is a {name}; {why}", where=encoder.source, do=do)
    return writer


def need_code(name: str) -> NetworkCode:
    """The code of a backbone by its name, such as `resnet3d:18`; raises EncoderError where it has none."""
    exports = EXPORTS.get(name.partition(":")[0], Exports())
    if not exports.code:
        raise EncoderError(f"its backbone {name} has no code that runs without dagman", do="Use dagman itself")
    code: NetworkCode = resolve(exports.code)(name)
    return code


def make_graph(encoder: Encoder) -> nn.Module:
    """An encoder as a module from HU to the maps, to be traced; raises EncoderError where its backbone has none."""
    exports = EXPORTS.get(encoder.config.backbone.partition(":")[0], Exports())
    if not exports.graph:
        find_writer(encoder, "torch-export")
    graph: nn.Module = resolve(exports.graph)(encoder.network.encoder, encoder.config.low, encoder.config.high)
    return graph


def resolve(name: str) -> Any:
    """What "module:function" names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


_UNTRACED = "MONAI's Swin cannot be traced with open sides (MONAI#5125)"
_AS_MONAI = "Use --to monai, or --to hf"
register_exports(
    "swin",
    Exports(
        writers={"monai": "dagman.export.monai.swin:write_swin"},
        code="dagman.export.assembly:list_swin_code",
        graph="dagman.export.swin_graph:FeatureGraph",
    ),
)
register_exports(
    "vit",
    Exports(
        writers={"monai": "dagman.export.monai.vit:write_vit"},
        code="dagman.export.assembly:list_vit_code",
        graph="dagman.export.vit_graph:ViTGraph",
    ),
)
register_exports(
    "resnet3d",
    Exports(
        writers={"monai": "dagman.export.monai.resnet:write_resnet"},
        code="dagman.export.assembly:list_resnet_code",
        graph="dagman.export.cnn_graph:ConvolutionalGraph",
    ),
)
register_exports(
    "resenc",
    Exports(
        writers={"nnunet": "dagman.export.nnunet.residual_encoder:write_residual_encoder"},
        code="dagman.export.assembly:list_residual_encoder_code",
        graph="dagman.export.cnn_graph:ConvolutionalGraph",
        refused={"monai": ("MONAI has no network of this shape", "Use --to nnunet, whose network it is, or --to torch-export")},
    ),
)
register_exports(
    "segresnet",
    Exports(
        writers={"monai": "dagman.export.monai.segresnet:write_segresnet"},
        code="dagman.export.assembly:list_segresnet_code",
        graph="dagman.export.cnn_graph:SegResNetGraph",
    ),
)
register_exports(
    "monai-swin",
    Exports(
        writers={"monai": "dagman.export.monai.swin:write_swin"},
        code="dagman.export.assembly:list_monai_swin_code",
        refused={"torch-export": (_UNTRACED, _AS_MONAI), "onnx": (_UNTRACED, _AS_MONAI)},
    ),
)
