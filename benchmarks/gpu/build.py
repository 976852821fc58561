"""What Triton makes of the kernels for a card, without one: registers, spilled bytes, shared memory, and the time to build them.

Triton builds for any NVIDIA card on any machine. The public functions are called on small tensors on the CPU; each program that
they would launch is built for the card in place of being launched. A program that spills registers waits for memory; one that
wants more shared memory than the card has cannot run.

Example: python -m benchmarks.gpu.build --capabilities 80 90 --out out/build.json
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Read when Triton is imported: nothing built before is taken, and programs are built, not interpreted.
os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = (_CACHE := tempfile.TemporaryDirectory(prefix="triton-")).name
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch

from dagman.model.windows import plan_windows

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one program may take, by compute capability (CUDA C++ Programming Guide, technical specifications)."""
REGISTERS = 65536
"""Of a multiprocessor, for all of its programs."""
ATTENTION = [(4, 12), (4, 16), (4, 24), (4, 32), (6, 24), (7, 24), (7, 32)]
"""Side of the window, channels of a head; windows of 4 with heads of 12 and 24 are those of the presets."""
CHANNELS = (24, 48, 96, 192, 384, 768)
QUICK: tuple[list[tuple[int, int]], tuple[int, ...]] = ([(4, 12)], (48,))
HEADS = 4


@dataclass(frozen=True)
class Program:
    """One program as built; seconds are processor time."""

    case: str
    precision: str
    capability: int
    name: str
    warps: int
    registers: int
    spilled: int
    shared: int
    seconds: float

    @property
    def resident(self) -> int:
        """Programs that a multiprocessor holds at once, by its registers and its shared memory."""
        by_registers = REGISTERS // (math.ceil(self.registers / 8) * 8 * 32 * self.warps)
        return int(min(by_registers, SHARED[self.capability] * 1024 // max(self.shared + 1024, 1)))


class _Card:
    """Stands in for Triton's driver where there is no card."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def building(capability: int, built: Callable[[Any, float], None]) -> Iterator[None]:
    """Within the block Triton's programs are built for a card of that capability and handed to `built`, and none is run."""
    import triton
    from triton.runtime.jit import JITFunction

    launch: Any = JITFunction.run

    def build(self: Any, *args: object, grid: object, warmup: bool, **options: object) -> object:
        began = _processor_seconds()
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        built(kernel, _processor_seconds() - began)
        return kernel

    triton.runtime.driver.set_active(_Card(capability))
    setattr(JITFunction, "run", build)  # noqa: B010
    try:
        yield
    finally:
        setattr(JITFunction, "run", launch)  # noqa: B010


def build_all(capability: int, windows: list[tuple[int, int]], channels: tuple[int, ...]) -> list[Program]:
    """Every program of the kernels in bfloat16 and float32: shifted windows, and LayerNorm with and without the sum before it."""
    from dagman.model.kernels.layer_norm import add_and_normalise
    from dagman.model.kernels.window_attention import attend_tokens

    programs: list[Program] = []

    def attend(side: int, width: int, dtype: torch.dtype) -> None:
        plan = plan_windows((2 * side,) * 3, side, side // 2, torch.device("cpu"))
        qkv = torch.zeros(1, plan.tokens, 3 * HEADS * width, dtype=dtype, requires_grad=True)
        bias = torch.zeros(HEADS, plan.places, plan.places, requires_grad=True)
        out = attend_tokens(qkv, torch.zeros(3 * HEADS * width), bias, plan, width**-0.5)
        torch.autograd.grad(out, [qkv, bias], torch.zeros_like(out))

    def normalise(width: int, added: bool, dtype: torch.dtype) -> None:
        x, branch = (torch.zeros(2, 64, width, dtype=one, requires_grad=True) for one in (torch.float32, dtype))
        weight, bias = (torch.zeros(width, requires_grad=True) for _ in range(2))
        given, scale = (branch, torch.ones(2)) if added else (None, None)
        total, normed = add_and_normalise(x, given, scale, weight, bias, 1e-5, dtype)
        torch.autograd.grad([total, normed], [x, weight, *([branch] if added else [])], [torch.zeros_like(total), normed])

    def measure(case: str, dtype: torch.dtype, call: Callable[[], None]) -> None:
        def keep(kernel: Any, seconds: float) -> None:
            registers, spilled = read_usage(kernel.asm["cubin"])
            meta, precision = kernel.metadata, str(dtype).removeprefix("torch.")
            programs.append(
                Program(case, precision, capability, meta.name, meta.num_warps, registers, spilled, meta.shared, round(seconds, 2))
            )

        with building(capability, keep):
            call()

    for dtype in (torch.bfloat16, torch.float32):
        for side, width in windows:
            measure(f"window of {side}^3, heads of {width}", dtype, lambda s=side, w=width, d=dtype: attend(s, w, d))  # type: ignore[misc]
        for width in channels:
            for added in (False, True):
                case = f"LayerNorm of {width}" + (" after a sum" if added else "")
                measure(case, dtype, lambda w=width, a=added, d=dtype: normalise(w, a, d))  # type: ignore[misc]
    return programs


def read_usage(binary: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of it that were spilled, as cuobjdump reads them from a built program."""
    import triton

    tool = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def tabulate(programs: list[Program]) -> str:
    """A row for each program, precision and capability, and of LayerNorm for all numbers of channels together."""
    groups: dict[tuple[str, str, str, int], list[Program]] = {}
    for one in programs:
        case = "LayerNorm" if one.case.startswith("LayerNorm") else one.case
        groups.setdefault((case, one.name, one.precision, one.capability), []).append(one)
    rows = ["| case | program | precision | card | registers | spilled bytes | shared KiB | at once | s to build |"]
    rows.append("|" + " --- |" * 9)
    for (case, name, precision, capability), some in groups.items():
        cells = [
            _span([one.registers for one in some]),
            _span([one.spilled for one in some]),
            _span([math.ceil(one.shared / 1024) for one in some]),
            _span([one.resident for one in some]),
            f"{max(one.seconds for one in some):.1f}",
        ]
        rows.append(f"| {case} | `{name}` | {precision} | sm_{capability} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _span(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _processor_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--capabilities", type=int, nargs="+", choices=SHARED, default=[80, 90, 100], help="of the cards, as in sm_90"
    )
    parser.add_argument("--quick", action="store_true", help="only the first stage of `tiny` and `small`")
    parser.add_argument("--out", type=Path, help="JSON file with every program")
    arguments = parser.parse_args()
    cases = QUICK if arguments.quick else (ATTENTION, CHANNELS)
    programs = [one for capability in arguments.capabilities for one in build_all(capability, *cases)]
    if arguments.out:
        from dagman.records.files import write_json

        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, [{**asdict(one), "resident": one.resident} for one in programs])
    print(tabulate(programs))


if __name__ == "__main__":
    main()
