"""Write the model card of an export (README.md): usage, provenance, results, and intended and out-of-scope use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dagman.encoder.encoder import Encoder
from dagman.evaluation.results import Results
from dagman.export.contents import describe_encoder, describe_run, describe_segmentation, find_run
from dagman.export.preprocessing import state_preprocessing
from dagman.reports.methods import quote_run
from dagman.tasks.segment.model import SegmentationModel

FILE = "README.md"
_DATA = ("scans", "patients", "scans_seen", "pretrained_on", "data_digest", "imported")
_PRIVATE = ("store", "command")
"""Entries that contain paths of the machine on which it was trained, and are not published."""
_PRIVACY = "- This folder contains no voxels, no patient names and no paths; the scans are listed only by content hash."
LICENCE = "To be set by whoever publishes these weights: the training data may restrict the choice of licence."


def write_card(
    folder: Path,
    encoder: Encoder,
    program: str,
    usage: str,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
    *,
    results: Sequence[Results] = (),
    header: str = "",
    language: str = "python",
    model: SegmentationModel | None = None,
) -> None:
    """Write the model card to README.md.

    Args:
        folder: Folder of the export.
        encoder: The exported encoder, or the encoder of `model`.
        program: Name of the program that reads the export.
        usage: Code that loads it.
        left_out: Parts of the encoder that the format cannot hold.
        notes: Further sentences on its use.
        results: Results of tasks that used this encoder.
        header: Text before the title, such as YAML metadata.
        language: Language of `usage`, for syntax highlighting.
        model: The exported segmentation model; None if only the encoder is exported.
    """
    run = find_run(encoder) if model is None else None
    contents = describe_encoder(encoder) if run is None else describe_run(run, weights=encoder.config.weights)
    what = encoder.describe()
    if model is not None:
        contents, what = describe_segmentation(model), f"A segmentation model on a {what}"
    lines = [
        f"# {what[0].upper()}{what[1:]}, for {program}",
        "",
        "Made by `dagman export`. Research use only; see the end.",
        "",
        "## Use",
        f"```{language}",
        usage.rstrip(),
        "```",
        *([f"Not exported, as the format has no place for it: {', '.join(left_out)}."] if left_out else []),
        *notes,
        "",
        "## Preprocessing",
        state_preprocessing(encoder),
        "",
        "Machine-readable: `preprocessing.json`.",
        "",
        "## Provenance",
        *_list_values(contents.made_of),
        "",
        "## Data",
        *_list_values({key: value for key, value in contents.made_from.items() if key in _DATA}),
        _PRIVACY,
        "",
        "## Method",
        *_list_values({key: value for key, value in contents.made_from.items() if key not in (*_DATA, *_PRIVATE)}),
        *([] if run is None else ["", quote_run(run)[-1].text]),
        "",
        "## Monitors at the end of pretraining",
        *[f"- {note}" for note in contents.notes or ("These weights came without their pretraining run.",)],
        "",
        "## Results",
        *_list_results(results),
        "",
        "## Licence",
        LICENCE,
        "",
        "## Intended use",
        *[f"- {use}" for use in contents.used_for],
        "",
        "## Out-of-scope use",
        *[f"- {use}" for use in contents.not_for],
    ]
    (folder / FILE).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


def _list_values(values: Mapping[str, Any]) -> list[str]:
    return [f"- {key.replace('_', ' ')}: {value}" for key, value in values.items()]


def _list_results(results: Sequence[Results]) -> list[str]:
    """Tabulate all measurements with their intervals; a sentence if there are no results."""
    if not results:
        return ["None were given (add those of a task by `--results FOLDER`)."]
    lines = ["| task | model | method | labels | measure | value | interval | items | patients |", "|" + "---|" * 9]
    for result in results:
        for row in result.summary.measurements:
            interval = row.interval
            spread = f"{interval.low:.3f} to {interval.high:.3f} ({interval.level:.0%})"
            if not math.isfinite(interval.low) or not math.isfinite(interval.high):
                spread = "none: all bootstrap resamples give the same value"
            cells = [result.summary.task, row.model, row.method, row.subset, row.name, f"{interval.value:.3f}", spread]
            lines.append(f"| {' | '.join(cells)} | {interval.items} | {interval.patients} |")
    return lines
