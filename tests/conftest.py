"""What every test gets: no connection, one thread a process, plain output, repeatable examples, the shared scans if any."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook

_TESTS = Path(__file__).parent
_SHARED_DATA = _TESTS.parents[1] / "shared" / "data"

# Before any library counts the cores: two workers with two threads each would only wait for one another.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS"):
    os.environ[_variable] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["NO_COLOR"] = "1"
# Read when Triton is first imported, which transformers may do. On a card its kernels are compiled (tests/gpu).
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"
# A key of the tests' own, kept with them on purpose and no secret (32 equal bytes): the same for all, so that pseudonyms are
# repeatable, and that none is made in the user's home.
os.environ["DAGMAN_KEY"] = str(_TESTS / "pseudonyms.key")
# Rich takes any of these for a terminal and puts colour codes into what a test compares.
for _variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(_variable, None)

# For this process, and by PYTHONPATH for those it starts.
runpy.run_path(str(_TESTS / "offline" / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(_TESTS / "offline"), *filter(None, [os.environ.get("PYTHONPATH")])])

# Axes in signatures are checked in tests, and cost nothing outside. Here, not by pytest's option, whose parser cannot take
# a checker with settings: an int must do for a float, as type checkers have it.
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["dagman.model", "dagman.method"], _CHECKER)

hypothesis.settings.register_profile(
    "dagman",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("dagman")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test go first: one that begins last keeps a worker busy while the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real scans beside the checkout; read only."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data beside the checkout")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def write_dicom() -> Callable[..., list[Path]]:
    """The writer of DICOM series, see `dagman.testing`."""
    from dagman.testing import write_dicom_series  # after the import hook

    return write_dicom_series


@pytest.fixture(scope="session")
def make_tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a tiny encoder, CT at 4 mm with semantic attention unless given otherwise; returns its folder."""
    from dagman.testing import make_tiny_config, write_tiny_encoder

    def make(**changes: Any) -> Path:
        return write_tiny_encoder(tmp_path_factory.mktemp("tiny") / "run" / "encoder", make_tiny_config(**changes))

    return make


@pytest.fixture
def call_dagman(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line in this process, which has its libraries loaded: exit code, output, errors."""
    from dagman.cli import application  # after the import hook

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dagman", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            application.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call
