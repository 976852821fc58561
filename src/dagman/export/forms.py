"""From an encoder, or a model on one, to a folder for another program: weights, preprocessing, and a card that shows their use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagman.encoder.encoder import Encoder
from dagman.errors import EncoderError
from dagman.evaluation.results import Results
from dagman.export.backbones import FORMS, find_writer, resolve
from dagman.export.card import write_card
from dagman.export.preprocessing import FILE, write_preprocessing
from dagman.records.files import write_whole
from dagman.records.names import suggest_name
from dagman.tasks.segment.model import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        files: Names of the files with weights and code, the most important first.
        usage: Lines that load them in the other program.
        left_out: Parts of the encoder that have no place there.
        notes: What the user has to know, in sentences.
    """

    files: tuple[str, ...]
    usage: str
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    header: str = ""
    "What stands before the card, such as the values that a hub reads."
    language: str = "python"
    "Of `usage`."


Writer = Callable[[Any, Path], Exported]

MODEL_FORMS: dict[str, tuple[str, str]] = {"monai-bundle": ("MONAI's bundles", "dagman.export.bundle.folder:write_bundle")}
"""The program and the writer ("module:function") of each form of segmentation models."""


def export_encoder(encoder: Encoder, form: str, out: str | Path, *, results: Sequence[Results] = ()) -> Exported:
    """Write an encoder for another program into the folder `out`, whole; `results` of tasks are listed in its card.

    Raises:
        EncoderError: There is no such form, the encoder has no place in it, or `out` holds something else.
        MissingExtraError: The form needs a library that is not installed.
    """
    if form not in FORMS:
        raise EncoderError(f"encoders cannot be exported to {form!r}", do=suggest_name(form, FORMS))
    return _write_form(encoder, encoder, (FORMS[form], find_writer(encoder, form)), Path(out), results=results)


def export_model(model: SegmentationModel, form: str, out: str | Path, *, results: Sequence[Results] = ()) -> Exported:
    """Write a segmentation model for another program into the folder `out`, whole. Raises EncoderError as `export_encoder`."""
    if form not in MODEL_FORMS:
        raise EncoderError(f"segmentation models cannot be exported to {form!r}", do=suggest_name(form, MODEL_FORMS))
    return _write_form(model, model.encoder, MODEL_FORMS[form], Path(out), results=results)


def _write_form(given: Any, encoder: Encoder, form: tuple[str, str], out: Path, *, results: Sequence[Results]) -> Exported:
    if out.exists() and not (out / FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise EncoderError("holds something that is not an export", where=out, do="Give another --out")
    program, writer = form
    write: Writer = resolve(writer)
    with write_whole(out) as temporary:
        temporary.mkdir()
        exported = write(given, temporary)
        write_preprocessing(temporary, encoder)
        write_card(
            temporary,
            encoder,
            program,
            exported.usage,
            exported.left_out,
            exported.notes,
            results=results,
            header=exported.header,
            language=exported.language,
            model=None if given is encoder else given,
        )
    return exported
