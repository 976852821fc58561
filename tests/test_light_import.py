"""Proves that importing dagman, and asking a command for help, loads no heavy library, and that such help ends with an example.

Each probe is a process of its own that prints what it has loaded; a meta-test shows that the probe would notice.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from dagman.cli import application

pytestmark = pytest.mark.usefixtures("unmeasured")

_HEAVY = {
    "SimpleITK",
    "blosc2",
    "highdicom",
    "jaxtyping",
    "lifelines",
    "matplotlib",
    "monai",
    "nibabel",
    "numba",
    "numpy",
    "pandas",
    "plotly",
    "pyarrow",
    "pydicom",
    "scipy",
    "sklearn",
    "sksurv",
    "tensorboard",
    "torch",
    "umap",
}

_PROBE = """
import json, sys
arguments = json.loads(sys.argv[1])
if arguments is None:
    import dagman
else:
    from dagman.cli.application import main
    sys.argv = ["dagman", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
print()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

# What dagman.model and dagman.method may not need: all that a bare GPU machine with torch and jaxtyping lacks.
_WITHOUT = """
import importlib, pkgutil, sys, warnings
missing = set(sys.argv[1].split(","))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
warnings.simplefilter("ignore")  # torch says that it found no numpy
for root in sys.argv[2:]:
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, f"{root}."):
        if ".kernels" not in module.name:  # Triton comes with torch on a GPU machine only
            importlib.import_module(module.name)
"""


def _probe(arguments: list[str] | None, code: str = _PROBE) -> tuple[str, set[str]]:
    """Output and top-level modules of a fresh process: `import dagman` (None), or the command line."""
    run = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr or run.stdout
    output, _, modules = run.stdout.rstrip().rpartition("\n")
    return output, set(json.loads(modules))


def test_importing_dagman_loads_no_heavy_library():
    _, modules = _probe(None)
    assert "dagman" in modules
    assert not modules & _HEAVY


def test_the_probe_would_notice_a_heavy_library():
    _, modules = _probe(None, code="import numpy\n" + _PROBE)
    assert modules & _HEAVY == {"numpy"}


def test_help_loads_no_heavy_library_and_lists_every_command():
    output, modules = _probe(["--help"])
    assert not modules & _HEAVY
    for name in application.list_commands():
        assert re.search(rf"^\W*{name}\b", output, re.MULTILINE), name


@pytest.mark.parametrize("command", application.list_commands())
def test_help_of_a_command_is_light_and_ends_with_an_example(command: str):
    output, modules = _probe([command, "--help"])
    assert not modules & _HEAVY
    # After the last box of options; a long example may be wrapped anywhere.
    ending = " ".join(output.rpartition("╯")[2].split())
    assert f"dagman {command}" in ending, output


def test_the_model_and_the_method_import_with_torch_and_jaxtyping_alone():
    missing = _HEAVY - {"torch", "jaxtyping"} | {"pydantic", "rich", "safetensors", "typer", "tomli_w"}
    arguments = [",".join(sorted(missing)), "dagman.model", "dagman.method"]
    run = subprocess.run([sys.executable, "-c", _WITHOUT, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_probe_without_libraries_would_notice_one_that_is_needed():
    run = subprocess.run([sys.executable, "-c", _WITHOUT, "jaxtyping", "dagman.model"], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "No module named 'jaxtyping'" in run.stderr
