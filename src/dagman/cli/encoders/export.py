"""`dagman export`: an encoder in the form of another program, with its preprocessing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

_EXAMPLE = "Example: dagman export runs/first --to monai --out for-monai"


@app.command(epilog=_EXAMPLE)
def export_weights(
    encoder: Annotated[
        str, typer.Argument(help="A run, an encoder folder, or scratch:SIZE; for monai-bundle, a model trained by dagman segment.")
    ],
    to: Annotated[str, typer.Option(help="Target: monai, monai-bundle, nnunet, hf (Hugging Face), onnx, or torch-export.")],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    weights: Annotated[str, typer.Option(help="Which weights of a run: teacher, student, or auto (teacher).")] = "auto",
    results: Annotated[
        list[Path] | None, typer.Option(help="Results folder of a task to list in the model card. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export an encoder or a segmentation model: its weights, preprocessing.json, and a README.md with the code that loads it."""
    from rich.console import Console

    from dagman.cli.progress import follow_parts
    from dagman.encoder.loading import load_encoder
    from dagman.evaluation.results import Results
    from dagman.export.forms import MODEL_FORMS, export_encoder, export_model
    from dagman.tasks.segment.model import load_model

    given = [Results(folder) for folder in results or []]
    # The exporter of torch names the operators of libraries that are not installed, which no encoder uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with follow_parts(Console(stderr=True), out) as notify:
        notify(f"exporting to {to}")
        if to in MODEL_FORMS:
            model = load_model(encoder, device="cpu")
            loaded, exported = model.encoder, export_model(model, to, out, results=given)
        else:
            loaded = load_encoder(encoder, device="cpu", weights=weights)
            exported = export_encoder(loaded, to, out, results=given)
    outcome = {"out": str(out), "files": exported.files, "left_out": exported.left_out, "notes": exported.notes}
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"{loaded.describe()}: {', '.join(exported.files)}")
    for part in exported.left_out:
        console.print(f"  left out: {part}")
    for note in exported.notes:
        console.print(f"  {note}")
    console.print(f"written: {out} (README.md shows how to load it)")
