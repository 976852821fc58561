"""`start.json` of a run that goes on from another: what it took, and what its weights were pretrained on before."""

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
    """What a run goes on from.

    Attributes:
        source: The last part of the name that was given.
        digest: Of the weights.
        parts: What became of each part of the networks, as plain values.
        cohorts: The pretrainings behind the weights.
        scans_seen: Content hashes of their scans.
        first_weights: Share of random weights in the teacher that was taken; 0 where it is not known.
    """

    source: str
    digest: str
    parts: tuple[dict[str, Any], ...]
    cohorts: tuple[PretrainedOn, ...]
    scans_seen: tuple[str, ...]
    first_weights: float = 0.0


def write_start(run: Path, source: Source, parts: Sequence[Part]) -> Start:
    """Write `start.json` of a run: the source, what was taken from it, and what its weights were pretrained on."""
    config = source.config
    cohorts = config.cohorts
    if not cohorts and not config.fresh:
        # Written before encoders listed their cohorts, or by another program.
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
    """What a run goes on from; None where it began from fresh weights. Raises RunError for a damaged file."""
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
    """Refuse to continue a run as one that goes on from something else.

    Raises:
        RunError: It began from fresh weights, or from another source.
    """
    start = read_start(run)
    if start is not None and start.source == Path(name).name:
        return
    began = "random weights" if start is None else start.source
    raise RunError(
        f"was started from {began}, not from {name}", where=run, do="Omit --continue-from to resume it, or choose another folder"
    )


def remember_start(config: EncoderConfig, start: Start | None, patients: int, digest: str) -> EncoderConfig:
    """The configuration of an encoder with all pretrainings behind it: those of the start, then this one."""
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
