"""Load `Settings` from presets, a TOML file and `--set key=value`, in increasing order of priority."""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dagman.errors import SettingsError
from dagman.records.names import nearest_name, suggest_name
from dagman.settings.tree import Settings
from dagman.settings.wanted import state_wanted


def list_presets(kind: str) -> list[str]:
    """List the names of the presets of a kind, "sizes" or "methods"."""
    folder = resources.files("dagman.settings") / "presets" / kind
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_settings(
    size: str | None = None, method: str | None = None, *, config: str | Path | None = None, assignments: Iterable[str] = ()
) -> tuple[Settings, frozenset[str]]:
    """Load settings from presets, a TOML file and `key=value` assignments, in increasing order of priority.

    Args:
        size: Size preset. Default: that of the file, else "tiny".
        method: Method preset. Default: that of the file, else "dagman".
        config: TOML file with the sections of `Settings`.
        assignments: Assignments such as "train.steps=300" or "masking.kind=random".

    Returns:
        The settings, and the keys that the user set.

    Raises:
        SettingsError: If a preset or key is unknown (the nearest is suggested), a value is invalid, or a preset is given twice.
    """
    given: dict[str, Any] = {}
    if config is not None:
        given = _read_toml(Path(config))
    assigned: dict[str, Any] = {}
    for assignment in assignments:
        _assign(given, assignment)
        _assign(assigned, assignment)
    for key, preset in (("size", size), ("method", method)):
        if preset is not None:
            _check_given_once(key, preset, assigned)
            given[key] = preset
    merged: dict[str, Any] = {}
    _merge(merged, _read_preset("sizes", str(given.get("size", "tiny"))))
    _merge(merged, _read_preset("methods", str(given.get("method", "dagman"))))
    _merge(merged, given)
    keys = frozenset(_list_keys(given))
    return validate_settings(merged, where=config), keys


def validate_settings(values: Mapping[str, Any], where: str | Path | None = None) -> Settings:
    """Build `Settings` from nested values; raises SettingsError with one sentence per invalid key, `where` being the file."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _explain_error(error, where) from None


def _read_preset(kind: str, name: str) -> dict[str, Any]:
    names = list_presets(kind)
    if name not in names:
        raise SettingsError(f"unknown {kind.removesuffix('s')} preset {name!r}", do=suggest_name(name, names))
    text = (resources.files("dagman.settings") / "presets" / kind / f"{name}.toml").read_text(encoding="utf-8")
    return {kind.removesuffix("s"): name, **tomllib.loads(text)}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings: {error.strerror}", where=path, do="Give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"is not TOML: {error}", where=path) from None


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    key = key.strip()
    if not separator or not key:
        raise SettingsError(f"--set {assignment!r} is not an assignment", do="Write --set key=value, such as --set train.steps=300")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is taken as a string, so that --set masking.kind=random needs no quotes in the shell.
        value = text.strip()
    *sections, field = key.split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise SettingsError(f"{key}: {section} is a value, not a section")
    target[field] = value


def _check_given_once(key: str, preset: str, assigned: Mapping[str, Any]) -> None:
    if assigned.get(key, preset) != preset:
        what = f"{key} is given twice, as {preset!r} and by --set as {assigned[key]!r}"
        raise SettingsError(what, do=f"Remove --set {key}={assigned[key]}, or --{key}")


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, dict) else value


def _list_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        keys += _list_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys


def list_fields(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """List the dotted keys of all settings, in the order of their definition."""
    names = []
    for name, field in model.model_fields.items():
        section = _find_section(field.annotation)
        names += list_fields(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return names


def _find_section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _find_section(part))), None)
    return None


def _explain_error(error: ValidationError, where: str | Path | None) -> SettingsError:
    by_key: dict[str, list[Any]] = {}
    for part in error.errors(include_url=False):
        # For a union, pydantic reports an error per member and appends the member's name to the field's key.
        known = ".".join(str(p) for p in part["loc"])
        key = next((f for f in list_fields() if known == f or known.startswith(f + ".")), known)
        by_key.setdefault(key, []).append(part)
    sentences = []
    lines = {key: _find_line(where, key) for key in by_key}
    if not any(lines.values()) and all(key in list_fields() for key in by_key):
        # The mistake is in a --set, not in the file.
        where = None
    for key, parts in by_key.items():
        line = lines[key]
        if parts[0]["type"] == "extra_forbidden":
            sentences.append(f"{key}: unknown key{line}. {_suggest_key(key)}")
        elif parts[0]["type"] == "model_type":
            sentences.append(f"{key}: is a section{line}, not a value. Set one of its keys, such as {_first_key(key)}")
        elif parts[0]["type"] == "value_error":
            sentences.append(f"{key}: {parts[0]['ctx']['error']}{line}" if key else f"{parts[0]['ctx']['error']}")
        else:
            wanted = " or ".join(dict.fromkeys(_explain_part(p, key) for p in parts))
            sentences.append(f"{key} = {parts[0]['input']!r}{line}: should be {wanted}{_suggest_choice(parts)}")
    return SettingsError("; ".join(sentences), where=where)


def _explain_part(part: Mapping[str, Any], key: str) -> str:
    """Describe the expected value. For lists, pydantic's own words ("valid tuple", or "Field required") would not help."""
    if part["type"] in ("tuple_type", "missing", "too_long"):
        example = _read_default(key)
        return f"a list of {len(example)} values, such as {list(example)}"
    return state_wanted(part)


def _suggest_choice(parts: Sequence[Mapping[str, Any]]) -> str:
    """Suggest the allowed word nearest to a misspelt one; empty if the value is not chosen from a list of words."""
    names = [
        name for part in parts if part["type"] == "literal_error" for name in re.findall(r"'([^']+)'", part["ctx"]["expected"])
    ]
    nearest = nearest_name(str(parts[0]["input"]), names) if len(names) > 1 else None
    return f". Nearest: {nearest}" if nearest else ""


def _read_default(key: str) -> Any:
    value: Any = Settings()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _suggest_key(key: str) -> str:
    same_end = [field for field in list_fields() if field.split(".")[-1] == key.split(".")[-1]]
    if same_end and "." not in key:
        return f"Nearest: {same_end[0]}"
    return suggest_name(key, Settings.model_fields if "." not in key else list_fields())


def _first_key(section: str) -> str:
    return next(key for key in list_fields() if key.startswith(f"{section}."))


def _find_line(where: str | Path | None, key: str) -> str:
    if where is None:
        return ""
    section = ""
    for number, line in enumerate(Path(where).read_text(encoding="utf-8").splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            section = f"{header[1]}."
        found = header[1] if header else section + line.partition("=")[0].strip()
        if found == key:
            return f" (line {number})"
    return ""
