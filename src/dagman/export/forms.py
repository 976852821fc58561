"""Export an encoder or a segmentation model to a folder for another program: weights, preprocessing and a model card."""

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
    """A description of the files that a writer produced.

    Attributes:
        files: Names of the files with weights and code, most important first.
        usage: Code that loads them in the other program.
        left_out: Parts of the encoder that the format cannot hold.
        notes: What users have to know, in sentences.
        header: Text before the title of the card, such as YAML metadata for a hub.
        language: Language of `usage`.
    """

    files: tuple[str, ...]
    usage: str
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    header: str = ""
    language: str = "python"


Writer = Callable[[Any, Path], Exported]

MODEL_FORMS: dict[str, tuple[str, str]] = {"monai-bundle": ("MONAI's bundles", "dagman.export.bundle.folder:write_bundle")}
"""The program and the writer ("module:function") of each format for segmentation models."""


def export_encoder(encoder: Encoder, form: str, out: str | Path, *, results: Sequence[Results] = ()) -> Exported:
    """Export an encoder to the folder `out`, which appears only when it is complete.

    Args:
        encoder: The encoder.
        form: Format, a key of `FORMS`.
        out: Folder to write; an earlier export in it is replaced.
        results: Results of tasks to list in the model card.

    Raises:
        EncoderError: The format does not exist or does not support the encoder, or `out` contains something else.
        MissingExtraError: The format needs a library that is not installed.
    """
    if form not in FORMS:
        raise EncoderError(f"encoders cannot be exported to {form!r}", do=suggest_name(form, FORMS))
    return _write_form(encoder, encoder, (FORMS[form], find_writer(encoder, form)), Path(out), results=results)


def export_model(model: SegmentationModel, form: str, out: str | Path, *, results: Sequence[Results] = ()) -> Exported:
    """Export a segmentation model; arguments and errors are those of `export_encoder`, with the formats of `MODEL_FORMS`."""
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
