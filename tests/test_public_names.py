"""Proves that the names others call are there, documented, and nothing else is public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections import Counter
from pathlib import Path

import pytest

import dagman
import dagman.testing

_PACKAGES = ["dagman", *(m.name for m in pkgutil.walk_packages(dagman.__path__, "dagman.") if m.ispkg)]
# The names the design promises, where a user's code looks for them.
_PROMISED = [
    "dagman.load",
    "dagman.open_dense",
    "dagman.prepare",
    "dagman.pretrain",
    "dagman.read",
    "dagman.method.teacher_forward",
    "dagman.method.student_losses",
    "dagman.model.SwinEncoder",
    "dagman.scans.phantom.write_cohort",
    "dagman.testing.make_body",
    "dagman.testing.write_dicom_series",
    "dagman.testing.write_nifti",
    "dagman.testing.write_tiny_encoder",
]


def test_the_root_has_exactly_its_public_names():
    assert dagman.__all__ == ["__version__", "load", "open_dense", "prepare", "pretrain", "read"]
    assert dir(dagman) == dagman.__all__


@pytest.mark.parametrize("promised", _PROMISED)
def test_a_promised_name_is_there_and_documented(promised: str):
    module, _, name = promised.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert callable(found)
    assert (found.__doc__ or "").strip()


@pytest.mark.parametrize("package", _PACKAGES)
def test_every_name_a_package_lists_is_there(package: str):
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", [])
    assert [name for name in listed if not hasattr(module, name)] == []


# What src itself does not call, and why it is there.
_FOR_USERS = {
    "DagmanTrainer",  # nnU-Net looks it up by its name
    "from_pretrained",
    "load_mask",
    "map_scan",
    "push_to_hub",
    "read_features",
    "read_splits",
    "register_masking",
    "register_metric",
    "render_reference",  # `make docs`
}
_REFERENCES = {
    # The definitions that tests hold the faster forms against.
    "estimate_auc",
    "label_on_scan_grid",
    "measure_auc",
    "measure_balanced_accuracy",
    "measure_breslow_loss",
    "measure_hausdorff",
    "measure_neighbour_accuracy",
    "measure_silhouette",
    "measure_surface_dice",
    "roll_into_tokens",
    "roll_into_windows",
    "share_dropped",
}


def _count_uses(trees: dict[Path, ast.Module]) -> Counter[str]:
    """How often src reads each name; strings count, "module:name" too, for names are looked up by them."""
    uses: Counter[str] = Counter()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                uses[node.id] += 1
            elif isinstance(node, ast.Attribute):
                uses[node.attr] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                uses[node.value.rpartition(":")[2]] += 1
    return uses


def test_what_is_public_is_used_or_listed_here():
    source = Path(dagman.__file__).parent
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in source.rglob("*.py")}
    uses = _count_uses(trees)
    # The functions of cli/ are called by their decorators.
    unused = {
        node.name
        for path, tree in trees.items()
        if "cli" not in path.relative_to(source).parts
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not uses[node.name]
    }
    unused -= set(dagman.testing.__all__)
    assert unused - _FOR_USERS - _REFERENCES == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = dagman.lod


def test_users_type_checkers_see_the_types():
    assert (Path(dagman.__file__).parent / "py.typed").exists()
