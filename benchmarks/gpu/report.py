"""The figures as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.floor import floor_seconds

MISSED = ("not measured", "why")
NONE = "–"
CHECKS = (
    "fast path",
    "fp32 error",
    "half error (reference)",
    "same bits twice",
    "times the reference",
    "kernel alone, of its byte floor",
)
ENCODERS = ("encoder", "pass", "ms", "times MONAI")
PATHS = ("step by", "views", "s (least to most)", "times the plain step", "losses apart", "waits of the host", "GiB")
GROWTH = ("views of", "1", "2", "4", "8", "16", "32", "64")
STEPS = ("step", "views", "kernels", "s (least to most)", "views/s", "GiB", "of the floor")


def render(found: dict[str, Any]) -> str:
    """Markdown: the ceilings, the checks, encoders beside MONAI's, whole steps, the profile, and what could not be measured."""
    ceilings = next(iter(found["ceilings"]), None)
    parts = [f"{found['device']}, torch {found['torch']}, {found['date']}; {found['command']}"]
    if ceilings:
        copied, multiplied = ceilings["bytes_per_s"] / 1e9, ceilings["bf16_flop_per_s"] / 1e12
        parts.append(f"Ceilings: {copied:,.0f} GB/s copied, {multiplied:,.1f} TFLOP/s in bf16.")
    parts += [
        _tabulate(CHECKS, [_say_check(row, ceilings) for row in found["checks"]]),
        _tabulate(ENCODERS, [_say_encoder(row, found["encoders"]) for row in found["encoders"]]),
        "Steps compute every window unless they say otherwise (train.skip_hidden=false), and read losses at once.",
        _tabulate(STEPS, [_say_step(row, found["floors"], ceilings) for row in found["steps"]]),
        _tabulate(PATHS, [_say_path(row) for row in found["paths"]]),
    ]
    sides = sorted({row["side"] for row in found["growth"]})
    parts.append("Forward and backward of the encoder, milliseconds a million voxels:")
    parts.append(_tabulate(GROWTH, [_say_growth(side, found["growth"]) for side in sides]))
    for row in found["joined"]:
        parts.append(f"The teacher's two passes as one ({row['name']}): {row['two'] / row['one']:.2f} times as fast.")
    for row in found["profiles"]:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in row["share"].items())
        parts.append(f"A step of {row['name']} by kind: {shares}.")
    parts.append(_tabulate(MISSED, list_missed(found)))
    return "\n\n".join(parts) + "\n"


def list_missed(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Parts, and figures of a check, that were not measured, and why."""
    told = found["parts"]
    missed = [(name, outcome["failed"]) for name, outcome in told.items() if "failed" in outcome]
    for row in found["checks"]:
        missed += [(f"{row['case']}, {key}", reason) for key, reason in row.get("failures", {}).items()]
    return missed + [(name, "not run: the time was up before it") for name in found.get("planned", []) if name not in told]


def _say_check(row: dict[str, Any], ceilings: dict[str, Any] | None) -> list[str]:
    error, half, reference = (row.get(key) for key in ("fp32_error", "half_error", "reference_half_error"))
    kernel, beside, alone = (row.get(key) for key in ("kernel_seconds", "reference_seconds", "alone_seconds"))
    worst = [f"{max(errors):.1e}" if errors else NONE for errors in (error, half, reference)]
    same = row.get("again_the_same_bits")
    return [
        row["case"],
        worst[0],
        f"{worst[1]} ({worst[2]})",
        NONE if same is None else "yes" if same else "NO",
        f"{beside / kernel:.2f}" if kernel and beside else NONE,
        f"{row['fewest_bytes'] / ceilings['bytes_per_s'] / alone:.0%}" if ceilings and alone else NONE,
    ]


def _say_encoder(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    monai = [one["seconds"] for one in rows if one["kernels"] == "monai" and one["pass"] == row["pass"]]
    ratio = f"{monai[0] / row['seconds']:.2f}" if monai else NONE
    return [f"{row['name']}, {row['kernels']}", row["pass"], f"{1000 * row['seconds']:.1f}", ratio]


def _say_step(row: dict[str, Any], floors: Sequence[dict[str, Any]], ceilings: dict[str, Any] | None) -> list[str]:
    memory = NONE if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
    floor = [one for one in floors if (one["name"], one["views"]) == (row["name"], row["views"])]
    share = f"{floor_seconds(floor[0], ceilings) / row['seconds']:.0%}" if floor and ceilings else NONE
    return [
        row["name"],
        str(row["views"]),
        row["kernels"],
        f"{row['seconds']:.3f} ({row['least']:.3f} to {row['most']:.3f})",
        f"{row['views'] / row['seconds']:.1f}",
        memory,
        share,
    ]


def _say_path(row: dict[str, Any]) -> list[str]:
    return [
        row["path"],
        f"{row['views']} of {row['name']}",
        f"{row['seconds']:.3f} ({row['least']:.3f} to {row['most']:.3f})",
        NONE if row["faster"] is None else f"{row['faster']:.2f}",
        NONE if row["apart"] is None else f"{row['apart']:.1e}",
        NONE if row["waits"] is None else str(row["waits"]),
        NONE if row["memory_gib"] is None else f"{row['memory_gib']:.1f}",
    ]


def _say_growth(side: int, rows: Sequence[dict[str, Any]]) -> list[str]:
    measured = {str(row["views"]): f"{1000 * row['seconds_per_million']:.1f}" for row in rows if row["side"] == side}
    return [f"{side}^3", *(measured.get(views, "") for views in GROWTH[1:])]


def _tabulate(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(head), ["---"] * len(head), *rows])
