"""Assemble one self-contained Python file from definitions in several modules.

The source is copied verbatim, so that exported code cannot diverge from dagman's. Removed are imports of dagman and jaxtyping, and
methods that only dagman needs. The calls that register a backbone are included, so that `build_backbone` works in the file.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from dagman import devices, errors
from dagman.model import backbone, linear, semantic_attention, swin, vit, window_attention, windows
from dagman.model.foreign import cnn, monai_swin, residual_encoder, resnet, segresnet

_UNNEEDED = ("dagman", "jaxtyping", "__future__")


_REGISTER = "register_backbone"
_SHAPE = ("SwinShape", "StageAttention")
_SWIN = (
    *_SHAPE,
    "AddAndNormalise",
    "_build",
    _REGISTER,
    "SwinEncoder",
    "scale_branches",
    "SwinStage",
    "SwinBlock",
    "PatchMerging",
    "_add_branch",
)
_TRAINING = ("use_kernels", "_forward_fused", "skip_hidden", "_pass_first_block")
"""Methods of a Swin that are used only in training or by kernels on a GPU, and depend on more of dagman."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Definitions to copy from a module, in the order of the module.

    Attributes:
        module: The module, or its file if it cannot be imported here.
        names: Names of the definitions; empty for all.
        without: Names of methods to remove.
    """

    module: ModuleType | Path
    names: tuple[str, ...] = field(default=())
    without: tuple[str, ...] = field(default=())


def assemble_module(docstring: str, parts: Sequence[Part], packages: Sequence[str] = ()) -> str:
    """Assemble the text of a Python file from the definitions of all parts and the imports that they need.

    Args:
        docstring: Docstring of the file.
        parts: The definitions, in order.
        packages: Packages to import at the top of the file, so that a missing one is reported before anything else runs.
    """
    imports: dict[str, None] = dict.fromkeys(f"import {package}" for package in packages)
    bodies = []
    for part in parts:
        text = part.module.read_text(encoding="utf-8") if isinstance(part.module, Path) else inspect.getsource(part.module)
        tree = ast.parse(text)
        lines = text.splitlines()
        imports |= dict.fromkeys(line for node in tree.body for line in _list_imports(node))
        kept = [node for node in tree.body if _is_kept(node, part)]
        bodies += [_cut_text(node, lines, part.without) for node in kept]
    head = f'"""{docstring}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(sorted(imports))
    return "\n\n\n".join([head, *bodies]) + "\n"


@dataclass(frozen=True, kw_only=True)
class NetworkCode:
    """The source of a backbone, including its registration for `build_backbone`.

    Attributes:
        parts: Definitions of the backbone.
        packages: Packages that it needs in addition to torch, by the name under which they are imported.
    """

    parts: Sequence[Part]
    packages: tuple[str, ...] = ()


def list_swin_code(name: str) -> NetworkCode:
    """List the code of dagman's Swin, without methods that are needed only in training."""
    return NetworkCode(
        parts=[
            *_list_base(),
            Part(module=windows),
            Part(module=window_attention),
            Part(module=swin, names=_SWIN, without=_TRAINING),
        ]
    )


def list_vit_code(name: str) -> NetworkCode:
    """List the code of a plain ViT, which uses the blocks of the semantic attention."""
    return NetworkCode(
        parts=[
            *_list_base(),
            *list_semantic_parts(),
            Part(module=windows, names=("Triple",)),
            Part(module=swin, names=(*_SHAPE, "scale_branches")),
            Part(module=vit),
        ]
    )


def list_semantic_parts() -> list[Part]:
    """List the code of the semantic attention, for encoders that have one in addition to their backbone."""
    return [
        Part(module=semantic_attention),
    ]


def list_resnet_code(name: str) -> NetworkCode:
    """List the code of MONAI's ResNet as a backbone."""
    return _list_foreign("monai", cnn, resnet)


def list_residual_encoder_code(name: str) -> NetworkCode:
    """List the code of nnU-Net's residual encoder as a backbone."""
    return _list_foreign("dynamic_network_architectures", cnn, residual_encoder)


def list_segresnet_code(name: str) -> NetworkCode:
    """List the code of the encoder of MONAI's SegResNet as a backbone."""
    return _list_foreign("monai", segresnet)


def list_monai_swin_code(name: str) -> NetworkCode:
    """List the code of MONAI's Swin as a backbone."""
    return _list_foreign("monai", monai_swin)


def _list_foreign(package: str, *modules: ModuleType) -> NetworkCode:
    parts = [*_list_base(), Part(module=swin, names=_SHAPE), *(Part(module=module) for module in modules)]
    return NetworkCode(parts=parts, packages=(package,))


def _list_base() -> list[Part]:
    return [
        Part(module=errors, names=("DagmanError", "_rebuild", "SettingsError", "EncoderError", "MissingExtraError")),
        Part(module=backbone, without=("use_kernels", "skip_hidden")),
        Part(module=devices, names=("pin_attention", "read_processor_vendor")),
        Part(module=linear),
    ]


def _list_imports(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {name}" for name in map(ast.unparse, node.names) if name.partition(".")[0] not in _UNNEEDED]
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in _UNNEEDED:
        return [f"from {node.module} import {ast.unparse(name)}" for name in node.names if name.name != "TYPE_CHECKING"]
    return []


def _is_kept(node: ast.stmt, part: Part) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return not part.names or node.name in part.names
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return not part.names or any(
            isinstance(name, ast.Name) and name.id in part.names for target in targets for name in ast.walk(target)
        )
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
        return node.value.func.id == _REGISTER and (not part.names or _REGISTER in part.names)
    return False


def _cut_text(node: ast.stmt, lines: Sequence[str], without: Sequence[str]) -> str:
    """Copy the source of a definition with its decorators, without the given methods."""
    skipped: set[int] = set()
    for inner in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(inner, ast.FunctionDef) and inner.name in without:
            skipped |= set(range(_first_line(inner), (inner.end_lineno or 0) + 1))
    numbers = range(_first_line(node), (node.end_lineno or 0) + 1)
    return "\n".join(lines[number - 1] for number in numbers if number not in skipped).rstrip()


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
