"""Proves that the names others call are there, documented, and nothing else is public."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import dagman

_PACKAGES = ["dagman", *(m.name for m in pkgutil.walk_packages(dagman.__path__, "dagman.") if m.ispkg)]
# The names the design promises, where a user's code looks for them.
_PROMISED = [
    "dagman.load",
    "dagman.prepare",
    "dagman.pretrain",
    "dagman.read",
    "dagman.method.teacher_forward",
    "dagman.method.student_losses",
    "dagman.model.SwinEncoder",
    "dagman.scans.phantom.write_cohort",
]


def test_the_root_has_exactly_its_public_names():
    assert dagman.__all__ == ["__version__", "load", "prepare", "pretrain", "read"]
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


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = dagman.lod


def test_users_type_checkers_see_the_types():
    assert (Path(dagman.__file__).parent / "py.typed").exists()
