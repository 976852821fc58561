"""What every test gets: no connection, one thread a process, plain output, repeatable examples, the shared scans if any."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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


NEEDED_GB = 3
"""What a run of all tests by two workers may hold at once in the temporary folder; single files need far less."""


def pytest_configure(config: pytest.Config) -> None:
    """End in one line where a run of all tests would fill the disk: hundreds of them would fail, each in its own words."""
    # The tests of single files or folders were asked for by name; workers begin only where their session does.
    if config.args_source is not pytest.Config.ArgsSource.ARGS and not hasattr(config, "workerinput"):
        require_space(Path(os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()), NEEDED_GB)


def require_space(folder: Path, gigabytes: float) -> None:
    """Raise pytest's `UsageError`, a line and an exit code of 4, where a folder's disk has less space than that."""
    free = shutil.disk_usage(folder).free
    if free < gigabytes * 1e9:
        what = f"The tests need about {gigabytes} GB in {folder}; {free / 1e6:.0f} MB are free."
        raise pytest.UsageError(f"{what} Free some, or set TMPDIR to a folder on a larger disk.")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the folders that a fixture made for its module once the module's tests have passed; pytest removes a test's alone."""
    made: list[Path] = []
    of_a_module = fixturedef.scope == "module" and "tmp_path_factory" in fixturedef.argnames
    if of_a_module:
        place, failed = request.getfixturevalue("tmp_path_factory").getbasetemp(), request.session.testsfailed

        def remove() -> None:
            if request.session.testsfailed == failed:
                for folder in made:
                    shutil.rmtree(folder, ignore_errors=True)

        # Before the fixture is made, so that it ends after all that the fixture itself does at its end.
        fixturedef.addfinalizer(remove)
        before = set(place.iterdir())
    outcome = yield
    if of_a_module:
        made += [folder for folder in place.iterdir() if folder not in before and not folder.is_symlink()]
    return outcome


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


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """No coverage in processes that the module starts: imports would take half as long again, and what is killed keeps none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session")
def run_dagman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A command line in a process of its own, forked from one that has the libraries loaded; `environment` adds to the test's.

    What `python -m dagman` would do, without the seconds of imports: for the many commands whose start is not the subject.
    """
    told, server = tmp_path_factory.mktemp("told"), None

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        nonlocal server
        if server is None:
            # Not measured: that would make its imports half as long again. Its forks are.
            unmeasured = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
            command = [sys.executable, str(_TESTS / "forked_commands.py")]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=unmeasured)
        words = [str(word) for word in arguments]
        streams = {name: str(told / name) for name in ("stdout", "stderr")}
        asked = {**streams, "words": words, "environment": {**os.environ, **environment}, "folder": os.getcwd()}
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        read = {name: Path(path).read_text(encoding="utf-8") for name, path in streams.items()}
        return subprocess.CompletedProcess(["dagman", *words], code, read["stdout"], read["stderr"])

    yield run
    if server is not None:
        server.communicate()


@pytest.fixture
def call_dagman(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line in this process, which has its libraries loaded: exit code, output, errors."""
    from dagman.cli import application, progress  # after the import hook

    # A slow machine would say more than a test expects: lines of what takes longer than some seconds.
    monkeypatch.setattr(progress, "FIRST", float("inf"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dagman", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            application.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call
