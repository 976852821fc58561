"""The suite's own care for the disk: what a module's fixture wrote goes with its module, and a full disk is one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_MODULE = """
import pytest

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    yield tmp_path_factory.mktemp("{name}")

def test_it(place):
    (place / "large").write_text("much")
    assert {passes}
"""
_LAST = """
def test_what_is_left(tmp_path_factory):
    left = [path for path in tmp_path_factory.getbasetemp().glob("of_*") if not path.is_symlink()]
    assert [path.name for path in left] == ["of_failed0"]
"""


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest):
    return request.config.pluginmanager.get_plugin(str(_TESTS / "conftest.py"))


def test_folders_of_a_module_go_with_it_unless_a_test_of_it_failed(tmp_path):
    for name, passes in (("passed", True), ("failed", False)):
        (tmp_path / f"test_{name}.py").write_text(_MODULE.format(name=f"of_{name}", passes=passes))
    (tmp_path / "test_last.py").write_text(_LAST)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    files = [tmp_path / f"test_{name}.py" for name in ("passed", "failed", "last")]
    options = ["-q", "-p", "conftest", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tmp_path / 'base'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(_TESTS), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr


def test_a_disk_that_is_too_full_for_all_tests_is_told_in_one_line(suite, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 10**12 - 25 * 10**6, 25 * 10**6))
    with pytest.raises(pytest.UsageError) as raised:
        suite.require_space(tmp_path, 3)
    assert str(raised.value).startswith(f"The tests need about 3 GB in {tmp_path}; 25 MB are free.")
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 10**12))
    suite.require_space(tmp_path, 3)


@pytest.mark.parametrize(
    ("asked", "inside", "checked"),
    [("TESTPATHS", False, True), ("INVOCATION_DIR", False, True), ("ARGS", False, False), ("TESTPATHS", True, False)],
)
def test_the_space_is_looked_at_once_for_a_run_of_all_tests(suite, monkeypatch, asked, inside, checked):
    seen = []
    monkeypatch.setattr(suite, "require_space", lambda folder, gigabytes: seen.append((folder.is_dir(), gigabytes)))
    config = namedtuple("config", "args_source workerinput" if inside else "args_source")
    source = pytest.Config.ArgsSource[asked]
    suite.pytest_configure(config(source, {}) if inside else config(source))
    assert seen == [(True, suite.NEEDED_GB)] * checked
