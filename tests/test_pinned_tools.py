"""Proves that the versions of pre-commit, of the CI files and of the tested set do not part."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (_ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_pre_commit_checks_with_the_tested_version_of_ruff():
    text = (_ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"ruff==([\d.]+)", text)) == {_PINNED["ruff"]}


def test_ci_runs_every_python_that_the_project_claims():
    claimed = {line.rpartition(" ")[2] for line in _PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    workflow = (_ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert set(re.findall(r"3\.\d+", matrix)) == claimed


def test_every_direct_dependency_is_pinned():
    groups = [_PROJECT["dependencies"], *_PROJECT["optional-dependencies"].values()]
    names = {re.split(r"[\[><=]", line)[0].lower() for group in groups for line in group} - {"dagman"}
    assert names - {name.lower() for name in _PINNED} == set()
