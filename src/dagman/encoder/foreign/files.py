"""Read files of weights without running code: safetensors, and torch files with `weights_only=True`."""

from __future__ import annotations

import argparse
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dagman.errors import EncoderError

CONVERT = (
    "If you trust it, convert it once: "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in model.swinViT.state_dict().items()}, 'weights.safetensors')"
)
HOLDERS = ("state_dict", "student", "model", "net")
"""Entries under which checkpoints store weights: MONAI and VoCo, SMIT and DINO, MONAI's SSL, SuPreM."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read the tensors of a file by name, its metadata, and the entry of `HOLDERS` that contained them ("" for none).

    Raises:
        EncoderError: The file does not contain weights, is damaged, or can be read only by running code.
    """
    if path.suffix in (".pt", ".pth", ".torch"):
        return _read_torch(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}, ""
    except (SafetensorError, OSError) as error:
        what = f"is not a safetensors file ({_first_line(error)}); other files must be .pt or .pth, with weights only"
        raise EncoderError(what, where=path, do=CONVERT) from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    try:
        # Checkpoints in DINO's style contain their arguments as a Namespace, which only holds values and runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        what = f"holds more than weights, and loading it could run code ({_name_object(error)})"
        raise EncoderError(what, where=path, do=CONVERT) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise EncoderError(f"is damaged, or not a torch file: {_first_line(error)}", where=path, do=CONVERT) from None
    holder = next((name for name in HOLDERS if isinstance(held, dict) and isinstance(held.get(name), dict)), "")
    if holder == "student" and isinstance(held.get("teacher"), dict) and any("swinViT." in name for name in held["teacher"]):
        # DINO's checkpoints contain both, and its authors use the teacher; the authors of SMIT use the student.
        holder = "teacher"
    state = held[holder] if holder else held
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        entries = ", ".join(map(str, held))[:80] if isinstance(held, dict) else type(held).__name__
        what = f"holds no named weights, neither at the top level nor under {', '.join(HOLDERS)}; it holds {entries}"
        raise EncoderError(what, where=path, do=CONVERT)
    return {str(name): value for name, value in state.items()}, {}, holder


def _name_object(error: Exception) -> str:
    """Extract the name of the object that torch refused from its long message."""
    words = str(error).partition("GLOBAL ")[2].split()
    return words[0] if words else "not one of torch's own types"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
