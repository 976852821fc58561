"""Continuing from a source: its sizes become the run's settings, its weights the initial ones; each part is accounted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dagman.errors import RunError
from dagman.method.networks import Network
from dagman.method.targets import Targets
from dagman.model import ViTEncoder
from dagman.records.counts import count_noun, list_some
from dagman.settings import Settings, list_presets
from dagman.settings.presets import validate_settings
from dagman.training.start.source import Source

ASIDE = frozenset({"drop_path"})
"""Settings of the model that do not change the shape or meaning of any weight."""
_ANCHORED = ("encoder", "semantic_attention")
POSITIONS = "encoder.positions"
_TITLES = {"taken": "adopted", "left over": "not used"}
_COPIED = {"teacher": "copied from the student", "centres": "starting from zero"}
"""How parts start that are not adopted and not random."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one part of the networks: taken from the source, initialised anew (fresh), or left over in the source."""

    name: str
    state: Literal["taken", "fresh", "left over"]
    weights: int
    reason: str = ""


def choose_presets(source: Source, size: str | None, method: str | None) -> tuple[str | None, str | None]:
    """Size and method to start the settings from: by default the source's own, if they are presets.

    Raises:
        RunError: Another size is requested than that of the source, whose weights would not fit.
    """
    held = source.config if source.settings is None else source.settings
    if size is not None and held.size in list_presets("sizes") and size != held.size:
        raise RunError(
            f"is of size {held.size}, but --size {size} was requested",
            where=source.name,
            do="Omit --size: it is that of the source",
        )
    size = size or (held.size if held.size in list_presets("sizes") else None)
    return size, method or (held.method if held.method in list_presets("methods") else None)


def adopt_settings(settings: Settings, given: Collection[str], source: Source) -> Settings:
    """The settings with the sizes of the source, and its intensity range unless another one was requested.

    Raises:
        RunError: Other sizes of the model were requested; they are named key by key.
    """
    values = settings.model_dump()
    differing = []
    for key, value in _list_sizes(source).items():
        section, _, name = key.partition(".")
        if key not in given:
            values[section][name] = value
        elif section == "model" and name not in ASIDE and _plain(values[section][name]) != _plain(value):
            differing.append(f"{key} is {_plain(value)} there and {_plain(values[section][name])} here")
    if differing:
        raise RunError(
            f"differs in size from what was requested: {'; '.join(differing)}",
            where=source.name,
            do="Remove these settings: the sizes are those of the source",
        )
    return validate_settings(values)


def _list_sizes(source: Source) -> dict[str, Any]:
    """Settings by key that the source's weights and their meaning depend on."""
    config = source.config
    if source.settings is not None:
        held = source.settings.model_dump()
        keys = [f"{section}.{name}" for section in ("model", "projector") for name in held[section]]
        keys += ["view.side", "view.low", "view.high", "masking.mask_fill"]
        return {key: held[key.partition(".")[0]][key.partition(".")[2]] for key in keys}
    shape = config.shape
    sizes: dict[str, Any] = {
        "model.backbone": config.backbone,
        "model.embed": shape.embed,
        "model.depths": shape.depths,
        "model.heads": shape.heads,
        "model.window": shape.window,
        "model.mlp_ratio": shape.mlp_ratio,
        "view.side": config.view,
        "view.low": config.low,
        "view.high": config.high,
        "masking.mask_fill": config.mask_fill,
    }
    if config.semantic is not None and config.semantic.depth:
        semantic = config.semantic
        sizes |= {"model.sa_stage": semantic.stage, "model.sa_heads": semantic.heads, "model.sa_depth": semantic.depth}
        sizes["model.sa_position"] = semantic.position
    return sizes


def adopt_weights(student: Network, teacher: Network | None, targets: Targets, source: Source) -> list[Part]:
    """Fill the networks and the targets' state from the source, and return what became of each part.

    Encoder and semantic attention must fit weight by weight. A projector or the reconstruction head is adopted as a whole, or keeps
    its random initialisation. A source without a teacher gives its weights to student and teacher.

    Raises:
        RunError: Weights of the encoder are missing, unknown or of another shape; all are counted and some named.
    """
    wanted, held = _group(student.state_dict()), _group(source.student)
    parts: list[Part] = []
    taken: dict[str, Tensor] = {}
    positions = _fit_positions(student, held)
    for name, weights in wanted.items():
        if name not in held:
            parts.append(Part(name=name, state="fresh", weights=len(weights), reason="the source has none"))
        elif reason := _compare(weights, held[name]):
            if name in _ANCHORED:
                raise RunError(f"does not fit this run's {name}: {reason}", where=source.name, do="Give a source of the same sizes")
            parts.append(Part(name=name, state="fresh", weights=len(weights), reason=reason))
        else:
            line = f"{count_noun(len(weights), 'weight')}; {positions}" if name == "encoder" and positions else ""
            parts.append(Part(name=name, state="taken", weights=len(weights), reason=line))
            taken |= held[name]
    parts += [Part(name=name, state="left over", weights=len(held[name])) for name in held if name not in wanted]
    student.load_state_dict({**student.state_dict(), **taken}, strict=True)
    kept = {part.name for part in parts if part.state == "taken"}
    if teacher is not None:
        parts.append(_fill_teacher(teacher, student, source, kept))
    restored = _restore_targets(targets, source, kept)
    if targets.centers:
        where = "" if restored else "the source has none that fit"
        parts.append(Part(name="centres", state="taken" if restored else "fresh", weights=len(restored), reason=where))
    return parts


def _fit_positions(network: Network, *states: dict[str, dict[str, Tensor]]) -> str:
    """Interpolate positions learned for views of another side to the network's own; returns a description, empty if none differ."""
    encoder, line = network.encoder, ""
    if not isinstance(encoder, ViTEncoder):
        return line
    for state in states:
        held = state.get("encoder", {}).get(POSITIONS)
        if held is not None and held.ndim == encoder.positions.ndim and held.shape[1:] != encoder.positions.shape[1:]:
            sides = [tuple(one.shape[1:]) for one in (held, encoder.positions)]
            line = f"positions interpolated from {_times(sides[0])} to {_times(sides[1])} units"
            state["encoder"][POSITIONS] = encoder.fit_positions(held)
    return line


def _times(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def _fill_teacher(teacher: Network, student: Network, source: Source, kept: Collection[str]) -> Part:
    own = _group(source.teacher or {})
    _fit_positions(teacher, own)
    state = {name: value for name, value in student.state_dict().items() if name in teacher.state_dict()}
    for name in kept:
        state |= {key: value for key, value in own.get(name, {}).items() if key in state}
    teacher.load_state_dict(state, strict=True)
    if source.teacher is None:
        return Part(name="teacher", state="fresh", weights=len(state), reason="the source has none")
    return Part(name="teacher", state="taken", weights=len(state))


def _restore_targets(targets: Targets, source: Source, kept: Collection[str]) -> list[str]:
    """Adopt centres, queues and temperatures of the adopted projectors; returns their names."""
    if source.targets is None:
        return []
    tensors, temperatures = source.targets
    fresh, logarithms = targets.state()
    names = [name for name in targets.centers if f"projectors.{name}" in kept and f"center.{name}" in tensors]
    for name in names:
        for key in (f"center.{name}", f"queue.{name}"):
            if key in fresh and key in tensors:
                fresh[key] = tensors[key]
        logarithms[name] = temperatures.get(name)
    targets.restore(fresh, logarithms)
    return names


def describe_parts(parts: list[Part], source: Source) -> list[str]:
    """Lines that describe the weights from which the run continues."""
    lines = [f"continues from {source.name}, {'a run' if source.kind == 'run' else 'an encoder'}; the optimiser starts anew"]
    groups: dict[str, list[str]] = {}
    for part in parts:
        title = _COPIED.get(part.name, "randomly initialised") if part.state == "fresh" else _TITLES[part.state]
        groups.setdefault(title, []).append(f"{part.name} ({part.reason or count_noun(part.weights, 'weight')})")
    lines += [f"{title}: {', '.join(named)}" for title, named in groups.items()]
    return lines + [f"previously pretrained on {cohort}" for cohort in source.config.cohorts]


def _group(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights by the part they belong to: encoder, semantic_attention, projectors.NAME, reconstruction."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        names = key.split(".")
        groups.setdefault(".".join(names[:2]) if names[0] == "projectors" else names[0], {})[key] = value
    return groups


def _compare(wanted: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> str:
    """Why weights do not fit, in words; empty if all of them do."""
    missing, surplus = sorted(wanted.keys() - held.keys()), sorted(held.keys() - wanted.keys())
    unfit = sorted(key for key in wanted.keys() & held.keys() if wanted[key].shape != held[key].shape)
    reasons = (("missing", missing), ("left over", surplus), ("of another shape", unfit))
    found = [f"{count_noun(len(keys), 'weight')} {what} ({list_some(keys, 3)})" for what, keys in reasons if keys]
    matched = len(wanted.keys() & held.keys()) - len(unfit)
    return f"{matched} of {len(wanted)} match, {', '.join(found)}" if found else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
