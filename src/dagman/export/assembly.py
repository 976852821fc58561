"""One self-contained Python file out of definitions of several modules: the very source, so that it cannot come to differ.

What is left out is what only dagman needs: imports of dagman, shapes in annotations (jaxtyping), and the methods that are named.
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

_UNNEEDED = ("dagman", "jaxtyping", "__future__")


_SWIN = (
    "AddAndNormalise",
    "SwinShape",
    "StageAttention",
    "SwinEncoder",
    "scale_branches",
    "SwinStage",
    "SwinBlock",
    "PatchMerging",
    "_add_branch",
)
_TRAINING = ("use_kernels", "_forward_fused", "skip_hidden", "_pass_first_block")
"""Of a Swin in training, on a GPU: they need more of dagman."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Definitions of a module (or of its file, where it cannot be imported here), in its order.

    Those in `names`, or all; `without`: methods that are left out.
    """

    module: ModuleType | Path
    names: tuple[str, ...] = field(default=())
    without: tuple[str, ...] = field(default=())


def assemble_module(docstring: str, parts: Sequence[Part]) -> str:
    """The text of a Python file with the definitions of all parts, and with the imports that they need."""
    imports: dict[str, None] = {}
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


def list_swin_parts(*backbone_names: str) -> list[Part]:
    """The parts that a Swin encoder is made of, without what only training needs; and further names of `dagman.model.backbone`."""
    return [
        Part(module=errors, names=("DagmanError", "_rebuild", "SettingsError", "EncoderError")),
        Part(
            module=backbone,
            names=("MaskFill", "STRIDES", "UNIT", "Encoded", "Backbone", "ClsBackbone", "find_unit_stage", *backbone_names),
            without=("use_kernels", "skip_hidden"),
        ),
        Part(module=devices, names=("pin_attention", "read_processor_vendor")),
        Part(module=linear),
        Part(module=windows),
        Part(module=window_attention),
        Part(module=swin, names=_SWIN, without=_TRAINING),
    ]


def list_vit_parts() -> list[Part]:
    """What a ViT needs beside the parts of a Swin: its blocks are those of the semantic attention."""
    return [Part(module=semantic_attention), Part(module=vit, names=("ViTShape", "ViTEncoder", "interpolate_positions"))]


def _list_imports(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {name}" for name in map(ast.unparse, node.names) if name.partition(".")[0] not in _UNNEEDED]
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in _UNNEEDED:
        return [f"from {node.module} import {ast.unparse(name)}" for name in node.names if name.name != "TYPE_CHECKING"]
    return []


def _is_kept(node: ast.stmt, part: Part) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return not part.names or node.name in part.names
    if isinstance(node, ast.Assign):
        return not part.names or any(
            isinstance(one, ast.Name) and one.id in part.names for target in node.targets for one in ast.walk(target)
        )
    return False


def _cut_text(node: ast.stmt, lines: Sequence[str], without: Sequence[str]) -> str:
    """The source of a definition with its decorators; without the methods named."""
    left_out: set[int] = set()
    for inner in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(inner, ast.FunctionDef) and inner.name in without:
            left_out |= set(range(_first_line(inner), (inner.end_lineno or 0) + 1))
    numbers = range(_first_line(node), (node.end_lineno or 0) + 1)
    return "\n".join(lines[number - 1] for number in numbers if number not in left_out).rstrip()


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    return min([node.lineno, *(one.lineno for one in decorators)])
