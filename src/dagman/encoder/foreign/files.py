"""Files of weights, read without running code: safetensors, and torch's own with `weights_only=True`."""

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
"""Under which checkpoints keep the weights: MONAI's and VoCo's, SMIT's and DINO's, MONAI's SSL, SuPreM's."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Tensors by name, the file's metadata, and the entry of `HOLDERS` they were under ("" for none).

    Raises:
        EncoderError: It is no file of weights, is damaged, or could be read only by running code.
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
        # Checkpoints in DINO's manner keep their arguments so; a Namespace is a record and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        what = f"holds more than weights, and loading it could run code ({_name_object(error)})"
        raise EncoderError(what, where=path, do=CONVERT) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise EncoderError(f"is damaged, or not a torch file: {_first_line(error)}", where=path, do=CONVERT) from None
    holder = next((name for name in HOLDERS if isinstance(held, dict) and isinstance(held.get(name), dict)), "")
    if holder == "student" and isinstance(held.get("teacher"), dict) and any("swinViT." in name for name in held["teacher"]):
        # DINO's checkpoints hold both, and its teacher is what is used; SMIT's authors use the student.
        holder = "teacher"
    state = held[holder] if holder else held
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        entries = ", ".join(map(str, held))[:80] if isinstance(held, dict) else type(held).__name__
        what = f"holds no named weights, neither at the top level nor under {', '.join(HOLDERS)}; it holds {entries}"
        raise EncoderError(what, where=path, do=CONVERT)
    return {str(name): value for name, value in state.items()}, {}, holder


def _name_object(error: Exception) -> str:
    """The name of the object that torch refused, out of the long message in which it says so."""
    words = str(error).partition("GLOBAL ")[2].split()
    return words[0] if words else "not one of torch's own types"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
