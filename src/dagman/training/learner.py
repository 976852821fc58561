"""The networks, targets and optimiser of a run, and the paper's training step that updates them from micro-batches of views."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from dagman.method.networks import Network
from dagman.method.schedules import freeze_last_layer, learning_rate, teacher_momentum
from dagman.method.step import ViewPair
from dagman.method.targets import Targets
from dagman.method.teacher import update_teacher
from dagman.settings import Settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients
from dagman.training.batches import draw_pairs
from dagman.training.checkpoints import Snapshot, copy_state, load_checkpoint
from dagman.training.parallel.group import Group
from dagman.training.parallel.replicas import replicate, retire
from dagman.training.parallel.sharing import size_micro_batch
from dagman.training.recovery.broken import Broken
from dagman.training.recovery.outcome import Gate, Outcome, TargetsState

MOST_GRAPHS = 64
"""Compiled graphs of one function that torch.compile may keep; one more would be an error. [ours]"""


class Learner:
    """Student, teacher, optimiser and targets: everything that changes from step to step. It reads no scans and writes no files.

    Args:
        settings: Resolved settings.
        device: As chosen by `dagman.devices`.
        precision: "fp32" or "bf16".
        kernels: "reference" or "triton".
        compiled: "off", "on" (encoders by torch.compile), or "graphs" (as CUDA graphs, too).
        read_after: Steps after which a step's losses are read: 0 or 1.
        skip_hidden: Whether hidden windows are skipped in the first block, if the settings leave this to the machine.
        group: The processes that share each step; a single one by default.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: str,
        precision: str,
        kernels: str = "reference",
        compiled: str = "off",
        read_after: int = 0,
        skip_hidden: bool = False,
        group: Group | None = None,
    ) -> None:
        self.settings, self.device, self.precision, self.group = settings, torch.device(device), precision, group or Group()
        self.student, self.teacher = assembly.build_networks(settings, skip_hidden=skip_hidden)
        self.replica: Network | DistributedDataParallel = self.student
        self.student.to(self.device).train()
        self.student.encoder.use_kernels(kernels)
        if self.teacher is not None:
            self.teacher.to(self.device)
            self.teacher.encoder.use_kernels(kernels)
        self.compiled = compiled
        if compiled != "off":
            self.compile_encoders(mode="reduce-overhead" if compiled == "graphs" else None)
        self.method = assembly.compose_method(settings)
        groups = assembly.group_parameters(self.student, settings.optim.weight_decay)
        # One kernel for all weights on a GPU; on a CPU the loop, so that older runs resume bit for bit.
        fused = self.device.type == "cuda" or read_after > 0
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, settings.optim.beta2), fused=fused)
        self.gate = Gate(self.device) if read_after else None
        if self.gate is not None:
            vars(self.optimizer)["found_inf"] = self.gate.shut
        self.targets = self._build_targets()

    def advance(self, pairs: Sequence[ViewPair], step: int, on_part: Callable[[int, int], None] | None = None) -> Outcome:
        """Take one training step on its micro-batches; returns its outcome, for `read`.

        on_part: As in `accumulate_gradients`.
        """
        s, steps = self.settings, self.settings.train.steps
        if self.compiled == "graphs":
            # The outputs of the previous step's CUDA graphs may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
        # ------------------------------------------------- schedules (App. A)
        lr = learning_rate(step, steps, peak=float(s.optim.lr), end=s.optim.min_lr, warmup=s.optim.warmup)
        momentum = teacher_momentum(step, steps, start=float(s.teacher.momentum), end=float(s.teacher.momentum_end))
        scheduled = assembly.schedule_temperature(s, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        # ------------------------------------------------- masks, targets, losses and their gradients (3.1, 3.2)
        self.optimizer.zero_grad(set_to_none=True)
        before = self.targets.state()
        with self.autocast():
            losses = accumulate_gradients(
                self.replica, self.teacher, pairs, self.method, self.targets, scheduled, self.group, on_part
            )

        # ------------------------------------------------- the student follows its gradient
        if freeze_last_layer(step, steps, epochs=s.train.freeze_epochs):
            for parameter in assembly.list_frozen(self.student):
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), s.optim.clip)
        outcome = Outcome(step, before, losses, norm, {"lr": lr, "momentum": momentum})
        if self.gate is not None:
            self.gate.see(losses.total, norm)
        elif outcome.read() is None:
            return outcome
        self.optimizer.step()

        # ------------------------------------------------- the teacher follows the student (3.2)
        if self.teacher is not None:
            update_teacher(self.teacher, self.student, momentum, None if self.gate is None else self.gate.shut)
        return outcome

    def read(self, outcome: Outcome) -> dict[str, Any] | Broken:
        """The row for `metrics.jsonl`; if the step was not finite, what is to be saved of it, and no weight has changed since."""
        row = outcome.read()
        if row is not None:
            return row
        broken = Broken(outcome.step, self.copy(outcome.before), outcome.found)
        if self.gate is not None:
            self.gate.open()
        return broken

    def draw_pairs(self, batch: Mapping[str, Any], step: int, own: range) -> list[ViewPair]:
        """The micro-batches of this process in a step, made of the pairs of views with the numbers `own`."""
        size = size_micro_batch(self.settings, self.group.size)
        return draw_pairs(batch, self.settings, step, own, self.student.encoder.branches, size, self.device)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 for the networks' matrix products, if chosen; losses, centres, softmax and EMA stay in float32."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def compile_encoders(self, *, mode: str | None = None, backend: str = "inductor") -> None:
        """Compile each encoder to one graph per view size with torch.compile; heads are not compiled.

        The number of rows in the heads varies with the padding of the views, and each would need a graph of its own.
        """
        # Clean, noisy and student passes share one function, for two sizes of micro-batches, with and without gradients.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        for network in (self.student, self.teacher):
            if network is None:
                continue
            encoder = network.encoder
            # A pass beforehand makes the plans of windows, which the graphs then take as constants.
            with torch.no_grad():
                encoder.encode(torch.zeros(1, 1, *(self.settings.view.side,) * 3, device=self.device))
            # The number of windows that are not hidden differs between steps: it becomes a symbol of the graph.
            dynamic = None if encoder.skips_hidden else False
            for name in ("encode", "attend") if encoder.own_cls else ("encode",):
                compiled = torch.compile(getattr(encoder, name), fullgraph=True, dynamic=dynamic, mode=mode, backend=backend)
                vars(encoder)[name] = compiled

    def uncompiled(self) -> contextlib.AbstractContextManager[object]:
        """A block in which nothing is compiled, for the monitors, whose batches have other sizes."""
        return contextlib.nullcontext() if self.compiled == "off" else torch.compiler.set_stance("force_eager")

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A block in which the processes of the group share each step."""
        self.replica = replicate(self.student, self.group, assembly.list_untrained(self.settings))
        try:
            yield
        finally:
            retire(self.replica)
            self.replica = self.student

    def start_reconstruction(self, mean: float) -> None:
        """Initialise the reconstruction, if there is one, to predict a mean intensity."""
        if self.student.reconstruction is not None:
            self.student.reconstruction.start_at(mean)

    def copy(self, targets: TargetsState | None = None) -> Snapshot:
        """Copy everything that changes; targets: their state from `Targets.state`, by default the current one."""
        return copy_state(self.student, self.teacher, self.optimizer, self.targets.state() if targets is None else targets)

    def load(self, run: Path) -> dict[str, Any]:
        """Load a run's newest checkpoint; returns the values of its `state.json`. Raises RunError as `load_checkpoint`."""
        return load_checkpoint(run, self.student, self.teacher, self.optimizer, self.targets)

    def begin_again(self) -> None:
        """Reset networks, optimiser and targets to step 0, in place."""
        student, teacher = assembly.build_networks(self.settings)
        self.student.load_state_dict(student.state_dict())
        if self.teacher is not None and teacher is not None:
            self.teacher.load_state_dict(teacher.state_dict())
        self.optimizer.state.clear()
        self.targets = self._build_targets()

    def _build_targets(self) -> Targets:
        return assembly.build_targets(self.settings, self.device, on_device=self.gate is not None)
