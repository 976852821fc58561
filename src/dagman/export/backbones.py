"""The registry of export formats for each backbone: the function that writes each format, or why the format is not supported.

A new backbone calls `register_exports` once. Formats of its own name their writer; shared formats (transformers, nnU-Net's trainer,
torch.export, ONNX, bundles) need only its code or its graph. Functions are named as strings, and imported when they are used.
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
"""The program that reads each format."""

_BY_CODE = {
    "nnunet": "dagman.export.nnunet.folder:write_trainer_folder",
    "hf": "dagman.export.huggingface.folder:write_folder",
}
_BY_GRAPH = {"torch-export": "dagman.export.graph:write_torch_export", "onnx": "dagman.export.graph:write_onnx"}


@dataclass(frozen=True, kw_only=True)
class Exports:
    """The export formats of a kind of backbone; functions are named as "module:function".

    Attributes:
        writers: Function that writes each format: takes an `Encoder` and a folder, returns an `Exported`.
        code: Function that returns the `NetworkCode` for a backbone's name; enables hf, nnunet and bundles.
        graph: Class of a module that maps HU to feature maps, called with the backbone and the low and high end of the HU window;
            enables torch-export and onnx.
        refused: For each unsupported format, the reason and what to use instead.
    """

    writers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    graph: str = ""
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def find(self, form: str) -> str:
        """Return the writer of a format; empty if there is none."""
        shared = (_BY_CODE if self.code else {}) | (_BY_GRAPH if self.graph else {})
        return "" if form in self.refused else self.writers.get(form) or shared.get(form, "")


EXPORTS: dict[str, Exports] = {}
"""The export formats of each kind of backbone, by its name in BACKBONES."""


def register_exports(name: str, exports: Exports) -> None:
    """Register the export formats of a kind of backbone.

    Raises:
        ValueError: The name is already registered.
    """
    if name in EXPORTS:
        raise ValueError(f"the forms of the backbone {name!r} are registered already")
    EXPORTS[name] = exports


def find_writer(encoder: Encoder, form: str) -> str:
    """Find the writer of a format for an encoder.

    Raises:
        EncoderError: The format is not supported for this backbone; the message states the reason and what to use instead.
    """
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
    """Return the code of a backbone by its name, such as `resnet3d:18`.

    Raises:
        EncoderError: The backbone has no code that runs without dagman.
    """
    exports = EXPORTS.get(name.partition(":")[0], Exports())
    if not exports.code:
        raise EncoderError(f"its backbone {name} has no code that runs without dagman", do="Use dagman itself")
    code: NetworkCode = resolve(exports.code)(name)
    return code


def make_graph(encoder: Encoder) -> nn.Module:
    """Convert an encoder to a traceable module that maps HU to feature maps.

    Raises:
        EncoderError: Its backbone cannot be traced.
    """
    exports = EXPORTS.get(encoder.config.backbone.partition(":")[0], Exports())
    if not exports.graph:
        find_writer(encoder, "torch-export")
    graph: nn.Module = resolve(exports.graph)(encoder.network.encoder, encoder.config.low, encoder.config.high)
    return graph


def resolve(name: str) -> Any:
    """Import the function that is named as "module:function"."""
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
