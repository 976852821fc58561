"""Proves the rules of CONTRIBUTING.md that no linter knows: size and names of files, what is never imported, never swallowed."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_SOURCE = _ROOT / "src" / "dagman"
_FILES = sorted(_SOURCE.rglob("*.py"))
_TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in _FILES}

_LONGEST_FILE = 400
_MOST_FILES = 12
_BAGS = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc", "tools"}
_PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "huggingface_hub"}
_PUBLIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _name(path: Path) -> str:
    return str(path.relative_to(_ROOT))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def _documented(tree: ast.Module) -> Iterator[tuple[str, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    yield "module", tree
    for node in tree.body:
        if isinstance(node, _PUBLIC) and not node.name.startswith("_"):
            yield node.name, node


def _is_swallowed(handler: ast.ExceptHandler) -> bool:
    """Whether a handler of everything neither raises nor uses what it caught."""
    everything = handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"}
    inside = [node for statement in handler.body for node in ast.walk(statement)]
    raises = any(isinstance(node, ast.Raise) for node in inside)
    uses = handler.name is not None and any(isinstance(node, ast.Name) and node.id == handler.name for node in inside)
    return everything and not (raises or uses)


def test_no_file_is_longer_than_one_subject_needs():
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _FILES}
    assert {name: length for name, length in lengths.items() if length > _LONGEST_FILE} == {}


def test_no_folder_holds_more_than_a_dozen_files():
    counts = Counter(_name(path.parent) for path in _FILES if path.stem != "__init__")
    assert {folder: count for folder, count in counts.items() if count > _MOST_FILES} == {}


def test_one_module_writes_csv():
    # A cell that a spreadsheet would run is written in a way of its own; see `records.csv_file`.
    writers = re.compile(r"\.to_csv\(|csv\.(Dict)?[wW]riter\(")
    found = {_name(path) for path in _FILES if writers.search(path.read_text(encoding="utf-8"))}
    assert found == {"src/dagman/records/csv_file.py"}


def test_reports_read_no_command_line():
    # What a page shows of a command is on record: a setting, an input, a column.
    readers = re.compile(r"\bargv\b|[\"\']arguments[\"\']")
    assert [_name(path) for path in _FILES if "reports" in path.parts and readers.search(path.read_text(encoding="utf-8"))] == []


def test_no_file_is_a_bag():
    assert [_name(path) for path in _FILES if set(path.stem.split("_")) & _BAGS or path.parent.name in _BAGS] == []


def test_what_is_public_says_what_it_does():
    silent = [
        f"{_name(path)}: {name}"
        for path, tree in _TREES.items()
        for name, node in _documented(tree)
        if len((ast.get_docstring(node) or "").split()) < 3
    ]
    assert silent == []


def test_no_function_shares_a_name_with_a_module():
    # The files of cli/ are named after their commands, and nobody imports them by name.
    modules = {path.parent.name if path.stem == "__init__" else path.stem for path in _FILES if "cli" not in path.parts}
    shared = [
        f"{_name(path)}: {node.name}"
        for path, tree in _TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in modules
    ]
    assert shared == []


def test_no_text_shows_the_name_of_a_constant_in_braces():
    """A string that lost its "f" shows "{CONVENTION}" to the reader."""
    found = []
    for path, tree in _TREES.items():
        formatted = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in formatted:
                found += [(path.name, node.lineno, name) for name in re.findall(r"\{[A-Z][A-Z_]+\}", node.value)]
    assert found == []


def test_nothing_is_pickled():
    # encoder/foreign reads others' .pt files with weights_only=True; of pickle it takes the error alone.
    foreign = next(path for path in _FILES if path.parts[-3:] == ("encoder", "foreign", "files.py"))
    found = [_name(path) for path, tree in _TREES.items() if set(_imports(tree)) & _PICKLERS and path != foreign]
    nnssl = next(path for path in _FILES if path.parts[-3:] == ("export", "nnunet", "checkpoint.py"))
    pickled = [node for node in ast.walk(_TREES[foreign]) if isinstance(node, ast.ImportFrom) and node.module == "pickle"]
    assert [alias.name for node in pickled for alias in node.names] == ["UnpicklingError"]
    assert not any(isinstance(node, ast.Import) and ast.unparse(node) == "import pickle" for node in ast.walk(_TREES[foreign]))
    for path, tree in _TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            allows = any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in call.keywords
            )
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
            if path == foreign and safe and ast.unparse(call.func) == "torch.load":
                continue
            # nnssl's layout is a .pth file; a test reads it with weights_only=True.
            if path == nnssl and ast.unparse(call.func) == "torch.save":
                continue
            if allows or ast.unparse(call.func) in {"torch.load", "torch.save", "pd.read_pickle"}:
                found.append(f"{_name(path)}:{call.lineno}")
    assert found == []


def test_nothing_can_open_a_connection():
    # encoder/hub.py is the one file that may, on a user's command.
    assert [_name(path) for path, tree in _TREES.items() if path.name != "hub.py" and set(_imports(tree)) & _NETWORK] == []


def test_no_error_is_swallowed():
    swallowed = [
        f"{_name(path)}:{node.lineno}"
        for path, tree in _TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and _is_swallowed(node)
    ]
    assert swallowed == []


@pytest.mark.parametrize(
    ("code", "swallowed"),
    [
        ("try: f()\nexcept: pass", True),
        ("try: f()\nexcept Exception as error: g()", True),
        ("try: f()\nexcept Exception as error: g(error)", False),
        ("try: f()\nexcept BaseException:\n    g()\n    raise", False),
        ("try: f()\nexcept ValueError: pass", False),
    ],
)
def test_the_rule_for_swallowed_errors_tells_them_apart(code: str, swallowed: bool):
    (handler,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ExceptHandler))
    assert _is_swallowed(handler) is swallowed


def test_no_path_of_one_machine_is_in_the_tree():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    # Put together so that this file does not hold what it looks for.
    machine = re.compile(r"(?<![\w.)}*-])/(?:" + "|".join(["work", "tmp", "root", "home", "Users"]) + r")/\w")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = _ROOT / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
            found += [f"{name}:{number}" for number, line in enumerate(lines, 1) if machine.search(line)]
    assert found == []
