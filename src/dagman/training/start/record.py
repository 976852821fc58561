"""`start.json` of a run that continues from a source: what it adopted, and what its weights were previously pretrained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagman.encoder.folder import EncoderConfig, PretrainedOn
from dagman.errors import RunError
from dagman.records.files import write_json
from dagman.training.start.adoption import Part
from dagman.training.start.source import Source

_FILE = "start.json"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run continues from.

    Attributes:
        source: The last part of the given name.
        digest: Hash of the weights.
        parts: What became of each part of the networks, as plain values.
        cohorts: The previous pretrainings of the weights.
        scans_seen: Content hashes of their scans.
        first_weights: Share of random initial weights in the adopted teacher; 0 if it is not known.
    """

    source: str
    digest: str
    parts: tuple[dict[str, Any], ...]
    cohorts: tuple[PretrainedOn, ...]
    scans_seen: tuple[str, ...]
    first_weights: float = 0.0


def write_start(run: Path, source: Source, parts: Sequence[Part]) -> Start:
    """Write `start.json` of a run: the source, what was adopted from it, and what its weights were pretrained on."""
    config = source.config
    cohorts = config.cohorts
    if not cohorts and not config.fresh:
        # An older encoder, or one of another program, does not list its cohorts.
        cohorts = (
            PretrainedOn(method=config.method, steps=config.step, scans=len(config.scans_seen), modalities=config.modalities),
        )
    start = Start(
        source=Path(source.name).name,
        digest=source.digest,
        parts=tuple(dataclasses.asdict(part) for part in parts),
        cohorts=cohorts,
        scans_seen=config.scans_seen,
        first_weights=1.0 if config.fresh else config.first_weights or 0.0,
    )
    write_json(run / _FILE, {"format": 1, **dataclasses.asdict(start)})
    return start


def read_start(run: Path) -> Start | None:
    """What a run continues from; None if it was randomly initialised. Raises RunError for a damaged file."""
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        del values["format"]
        values["cohorts"] = tuple(PretrainedOn.from_json(one) for one in values["cohorts"])
        return Start(**values | {"parts": tuple(values["parts"]), "scans_seen": tuple(values["scans_seen"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"is damaged: {error}", where=path, do="Restore it from a copy, or start another run") from None


def check_start(run: Path, name: str) -> None:
    """Refuse to resume a run with another --continue-from than it was started with.

    Raises:
        RunError: It was randomly initialised, or started from another source.
    """
    start = read_start(run)
    if start is not None and start.source == Path(name).name:
        return
    began = "randomly initialised weights" if start is None else start.source
    raise RunError(
        f"was started from {began}, not from {name}", where=run, do="Omit --continue-from to resume it, or choose another folder"
    )


def remember_start(config: EncoderConfig, start: Start | None, patients: int, digest: str) -> EncoderConfig:
    """The configuration of an encoder with all its pretrainings: those of the source, then this one."""
    this = PretrainedOn(
        method=config.method,
        steps=config.step,
        scans=len(config.scans_seen),
        patients=patients,
        digest=digest,
        modalities=config.modalities,
        spacing=config.spacing,
        view=config.view,
    )
    if start is None:
        return dataclasses.replace(config, cohorts=(this,))
    left = None if config.first_weights is None else config.first_weights * start.first_weights
    return dataclasses.replace(
        config,
        cohorts=(*start.cohorts, this),
        scans_seen=tuple(sorted({*start.scans_seen, *config.scans_seen})),
        modalities=tuple(sorted({*config.modalities, *(kind for one in start.cohorts for kind in one.modalities)})),
        first_weights=left,
    )
