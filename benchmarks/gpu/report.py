"""The figures as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHECKS = ("fast path", "fp32 error", "half error (reference)", "same bits twice", "times the reference", "of its byte floor")
ENCODERS = ("encoder", "pass", "ms", "times MONAI")
PATHS = ("step by", "views", "s (least to most)", "times the plain step", "losses apart", "waits of the host", "GiB")
GROWTH = ("views of", "1", "2", "4", "8", "16", "32", "64")
STEPS = ("step", "views", "kernels", "s (least to most)", "views/s", "GiB", "of the floor")


def render(found: dict[str, Any]) -> str:
    """Markdown: the ceilings, the checks, encoders beside MONAI's, whole steps, the profile."""
    ceilings = found["ceilings"]
    parts = [
        f"{found['device']}, torch {found['torch']}, {found['date']}; {found['command']}",
        f"Ceilings: {ceilings['bytes_per_s'] / 1e9:,.0f} GB/s copied, {ceilings['bf16_flop_per_s'] / 1e12:,.1f} TFLOP/s in bf16.",
        _tabulate(CHECKS, [_say_check(row, ceilings) for row in found["checks"]]),
        _tabulate(ENCODERS, [_say_encoder(row) for row in found["encoders"]]),
        _tabulate(STEPS, [_say_step(row) for row in found["steps"]]),
    ]
    parts.append(_tabulate(PATHS, [_say_path(row) for row in found["paths"]]))
    sides = sorted({row["side"] for row in found["growth"]})
    parts.append("Forward and backward of the encoder, milliseconds a million voxels:")
    parts.append(_tabulate(GROWTH, [_say_growth(side, found["growth"]) for side in sides]))
    for row in found["joined"]:
        parts.append(f"The teacher's two passes as one ({row['name']}): {row['two'] / row['one']:.2f} times as fast.")
    for row in found["profiles"]:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in row["share"].items())
        parts.append(f"A step of {row['name']} by kind: {shares}.")
    return "\n\n".join(parts) + "\n"


def _say_check(row: dict[str, Any], ceilings: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["case"], row["failed"], "", "", "", ""]
    floor = row["fewest_bytes"] / ceilings["bytes_per_s"]
    return [
        row["case"],
        f"{max(row['fp32_error']):.1e}",
        f"{max(row['half_error']):.1e} ({max(row['reference_half_error']):.1e})",
        "yes" if row["again_the_same_bits"] else "NO",
        f"{row['reference_seconds'] / row['kernel_seconds']:.2f}",
        f"{floor / row['kernel_seconds']:.0%}",
    ]


def _say_encoder(row: dict[str, Any]) -> list[str]:
    ratio = "–" if row.get("monai") is None else f"{row['monai'] / row['seconds']:.2f}"
    return [row["name"], row["pass"], f"{1000 * row['seconds']:.1f}", ratio]


def _say_step(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["name"], str(row["views"]), row["kernels"], row["failed"], "", "", ""]
    memory = "–" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
    return [
        row["name"],
        str(row["views"]),
        row["kernels"],
        f"{row['seconds']:.3f} ({row['least']:.3f} to {row['most']:.3f})",
        f"{row['views'] / row['seconds']:.1f}",
        memory,
        f"{row['floor'] / row['seconds']:.0%}",
    ]


def _say_path(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["path"], str(row["views"]), row["failed"], "", "", "", ""]
    return [
        row["path"],
        f"{row['views']} of {row['name']}",
        f"{row['seconds']:.3f} ({row['least']:.3f} to {row['most']:.3f})",
        f"{row['faster']:.2f}",
        f"{row['apart']:.1e}",
        "–" if row["waits"] is None else str(row["waits"]),
        "–" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}",
    ]


def _say_growth(side: int, rows: Sequence[dict[str, Any]]) -> list[str]:
    measured = {str(row["views"]): f"{1000 * row['seconds_per_million']:.1f}" for row in rows if row["side"] == side}
    return [f"{side}^3", *(measured.get(views, "") for views in GROWTH[1:])]


def _tabulate(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(head), ["---"] * len(head), *rows])
