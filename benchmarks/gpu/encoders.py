"""Encoders alone: beside MONAI's of the same shape, growth with side and number of views, and the teacher's two passes as one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from benchmarks.gpu.timing import time_call
from benchmarks.swin_step import SIZES, build_monai

from dagman.model import SwinEncoder


def time_encoder(size: str, direction: str, views: int, side: int, kernels: str, device: str, rounds: int) -> dict[str, Any]:
    """An encoder's forward pass, or forward and backward, in bf16 autocast; kernels `monai`: MONAI's of the same shape, eager."""
    shape, view = SIZES[size][0], torch.rand(views, 1, side, side, side, device=device)
    encoder: torch.nn.Module
    if kernels == "monai":
        encoder = build_monai(shape).to(device)
    else:
        encoder = SwinEncoder(shape).to(device)
        encoder.use_kernels(kernels)

    def run() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16), torch.set_grad_enabled(direction == "step"):
            features = encoder(view)[-4:]
            loss = torch.stack([x.float().square().mean() for x in features]).sum()
        if direction == "step":
            loss.backward()

    row = {"name": f"{size}, {views} views of {side}^3", "kernels": kernels, "pass": direction}
    return row | time_call(run, device, rounds=rounds)


def grow(size: str, side: int, device: str, most: int, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of the encoder with 1, 2, 4, ... views of a side, to the most that fit; seconds a million voxels."""
    rows: list[dict[str, Any]] = []
    views = 1
    while views <= most:
        try:
            row = time_encoder(size, "step", views, side, "reference", device, min(rounds, 3))
        except torch.OutOfMemoryError:
            break
        rows.append({**row, "side": side, "views": views, "seconds_per_million": row["seconds"] / (views * side**3 / 1e6)})
        views *= 2
    return rows


def compare_joined(size: str, views: int, side: int, device: str, rounds: int) -> dict[str, Any]:
    """The teacher's clean and noisy pass as two and as one of twice the views, in bf16 without gradient."""
    encoder = SwinEncoder(SIZES[size][0]).to(device)
    view = torch.rand(views, 1, side, side, side, device=device)
    hidden = torch.rand(views, *(side // 2,) * 3, device=device) < 0.7
    clean = torch.zeros_like(hidden)

    def run(joined: bool) -> None:
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16):
            if joined:
                encoder(torch.cat([view, view]), torch.cat([hidden, clean]))
            else:
                encoder(view, hidden)
                encoder(view, None, None, 3)

    two, one = (time_call(partial(run, joined), device, rounds=rounds) for joined in (False, True))
    return {"name": f"{size}, {views} views of {side}^3", "two": two["seconds"], "one": one["seconds"]}
