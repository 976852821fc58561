"""Proves the memory of a run is estimated before anything is allocated: against a measured peak, and in what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dagman import devices
from dagman.devices import free_memory
from dagman.errors import RunError
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.training.assembly import build_networks
from dagman.training.parallel.group import Group
from dagman.training.resources.fitting import fit_memory
from dagman.training.resources.interruption import StopRequestedError, interruptible
from dagman.training.resources.memory import GIB, MemoryEstimate, check_estimate, count_kept_bytes, estimate_memory, fit_micro_batch

TOLERANCE = 0.15
"""Of the estimate beyond what the process held, where nothing was held back by an earlier step."""

# One optimiser step on noise in a process of its own, as `pretrain` makes it; prints the bytes at the peak beyond those before.
_STEP = """
import math, sys, torch
from dagman import devices
from dagman.method.networks import unit_grid
from dagman.method.noise import count_noise_draws
from dagman.method.step import ViewPair
from dagman.method.targets import Targets
from dagman.settings import Settings
from dagman.training import assembly
from dagman.training.accumulation import accumulate_gradients
from dagman.training.draws import draw_drop_path, draw_masking, draw_noise

settings = Settings.model_validate_json(sys.argv[1])
devices.tune_allocator(device="cpu")
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
before = devices.held_memory()
student, teacher = assembly.build_networks(settings)
optimizer = torch.optim.AdamW(assembly.group_parameters(student.train(), 0.05))
targets = Targets(assembly.compose_rules(settings), int(settings.projector.prototypes), assembly.name_projectors(settings))
side, views = settings.view.side, settings.train.batch
grid, numbers = unit_grid((side,) * 3), range(settings.train.batch)
noise = draw_noise(0, 0, numbers, count_noise_draws(grid, settings.teacher.granularity))
pair = ViewPair(
    views=torch.rand(views // 2, 2, 1, side, side, side),
    masking=draw_masking(0, 0, numbers, math.prod(grid)).unflatten(0, (-1, 2)),
    noise=noise.unflatten(0, (-1, 2)),
    drop_path=draw_drop_path(0, 0, numbers, student.encoder.branches).unflatten(1, (-1, 2)),
)
accumulate_gradients(student, teacher, [pair], assembly.compose_method(settings), targets, 0.05)
optimizer.step()
print(round(devices.peak_memory_gib() * 2**30) - before)
"""


def _resolve(size: str, *assignments: str) -> Settings:
    return resolve_settings(load_settings(size, assignments=assignments)[0])[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the peak is measured on Linux")
@pytest.mark.parametrize(("size", "side"), [("tiny", 64), ("small", 64)])
def test_the_estimate_is_the_measured_peak_of_a_step(size, side):
    settings = _resolve(size, f"view.side={side}", "train.batch=2")
    ended = subprocess.run([sys.executable, "-c", _STEP, settings.model_dump_json()], capture_output=True, text=True, check=True)
    estimate = estimate_memory(settings, 2, device="cpu", precision="fp32")
    assert estimate.needed == pytest.approx(int(ended.stdout), rel=TOLERANCE)


def test_what_autograd_keeps_is_counted_as_it_is_kept():
    settings = _resolve("tiny", "view.side=32", "train.batch=2")
    student, _ = build_networks(settings)
    with torch.device("meta"):
        shapes, _ = build_networks(settings)
    assert count_kept_bytes(shapes, 32) == pytest.approx(count_kept_bytes(student, 32), rel=0.01)


def test_activations_grow_with_the_micro_batch_and_weights_do_not():
    settings = _resolve("tiny")
    two, four = (estimate_memory(settings, views, device="cpu", precision="fp32") for views in (2, 4))
    weights = sum(p.numel() for p in build_networks(settings)[0].parameters())
    assert four.activations == pytest.approx(2 * two.activations, rel=1e-6)
    assert two.weights == four.weights
    assert 16 * weights < two.weights <= 20 * weights
    assert two.total == two.weights + two.step + two.activations


def _fit(settings: Settings, free: float, *, fixed: bool = False) -> MemoryEstimate:
    return fit_micro_batch(settings, device="cpu", precision="fp32", process=0, free=int(free * GIB), fixed=fixed)


def test_the_micro_batch_is_the_largest_that_fits():
    settings = _resolve("small")
    assert settings.train.micro_batch == 16
    chosen = {free: _fit(settings, free).micro_batch for free in (100, 20, 10)}
    assert chosen == {100: 16, 20: 8, 10: 4}
    for free in chosen:
        assert _fit(settings, free).needed <= 0.9 * free * GIB
    assert estimate_memory(settings, 16, device="cpu", precision="fp32").needed > 0.9 * 20 * GIB


def test_ranks_hold_their_share_of_a_step_and_all_cut_it_as_the_smallest_room_asks(monkeypatch):
    settings = _resolve("small")
    one, two = (estimate_memory(settings, 4, device="cpu", precision="fp32", ranks=ranks) for ranks in (1, 2))
    assert (two.weights, two.activations) == (one.weights, one.activations)
    assert two.step == one.step // 2
    monkeypatch.setattr(devices, "held_memory", lambda: 0)
    monkeypatch.setattr(devices, "free_memory", lambda device: 40 * GIB)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    class Two(Group):
        """Rank 0 of two on one host, the other of which has room for this many views."""

        def share(self, value):
            return [value, self.others if isinstance(value, int) and not isinstance(value, bool) else value]

    def fit(others: int):
        group = Two(0, 2)
        group.others = others
        return fit_memory(settings, ["train.micro_batch = 16, all of a step"], "cpu", "fp32", group, fixed=False)

    # 8 of the 16 views of a step are a rank's, and 20 GiB of the host's 40.
    same, estimate, reasons = fit(8)
    assert (same, estimate.micro_batch, estimate.free) == (settings, 8, 20 * GIB)
    assert reasons == ["train.micro_batch = 16, all of a step"]
    cut, estimate, reasons = fit(4)
    assert (cut.train.micro_batch, estimate.micro_batch) == (4, 4)
    assert reasons == ["train.micro_batch = 4, not 16: the largest that fits in free memory"]
    monkeypatch.setattr(devices, "free_memory", lambda device: 4 * GIB)
    with pytest.raises(RunError, match=r"2 at once by each of 2 ranks, needs about .*, and 2.0 GiB are free for each"):
        fit(2)


def test_where_nothing_fits_one_line_has_the_numbers_and_what_would():
    with pytest.raises(RunError) as caught:
        _fit(_resolve("paper"), 8)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("size paper with views of 128^3, 64 per step and 2 at once, needs about 13.1 GiB of memory")
    assert "8.0 GiB are free" in text
    assert "What would fit: --set view.side=96" in text
    assert "--size small" in text
    with pytest.raises(RunError, match=r"What would fit: --set train.recompute=[12] \(about \d+.\d GiB\)"):
        _fit(_resolve("paper"), 12)
    with pytest.raises(RunError, match=r"What would fit: --set train.micro_batch=2"):
        _fit(_resolve("small"), 10, fixed=True)
    with pytest.raises(RunError, match="Use a machine with more memory"):
        _fit(_resolve("tiny"), 0.01)


def test_the_first_micro_batch_confirms_the_estimate_or_ends_the_run():
    estimate = MemoryEstimate(micro_batch=2, weights=2 * GIB, step=0, activations=4 * GIB, process=GIB, free=8 * GIB)
    assert check_estimate(estimate, 6 * GIB).startswith("memory: 6.0 GiB at the peak of the first micro-batch; about 7.0 GiB")
    with pytest.raises(RunError, match=r"took 8.5 GiB of memory, but 7.0 GiB were estimated for the run, and 1.0 GiB more"):
        check_estimate(estimate, 8.5 * GIB)


def test_free_memory_is_that_of_the_container(tmp_path):
    assert free_memory(root=tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert free_memory(root=tmp_path) == 1000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("400000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(root=tmp_path) == 1000 * 1024
    (group / "memory.max").write_text("500000\n")
    assert free_memory(root=tmp_path) == 200000


@pytest.mark.parametrize("backward", [False, True])
def test_a_stop_is_heeded_within_a_pass(backward):
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    stop = False

    def ask(_: torch.Tensor) -> None:
        nonlocal stop
        stop = True

    x = torch.ones(2, 4, requires_grad=True)
    with interruptible([network, None], lambda: stop):
        y = network(x)
        if backward:
            y.register_hook(ask)
        else:
            stop = True
        with pytest.raises(StopRequestedError):
            y.sum().backward() if backward else network(x)
    # Outside the block nothing is left in the network.
    network(x).sum().backward()


def test_the_estimate_is_printed_and_kept_with_the_run(store, tiny, tmp_path):
    from dagman.training.pretraining import pretrain

    printed = []
    options = [*tiny, "train.steps=1", "train.monitor_every=1"]
    pretrain(store.path, tmp_path / "run", assignments=options, on_event=lambda name, values: printed.append((name, values)))
    texts = [values["text"] for name, values in printed if name == "choice"]
    before = next(index for index, (name, _) in enumerate(printed) if name == "begin")
    lines = [index for index, (_, values) in enumerate(printed) if str(values.get("text")).startswith("memory: ")]
    assert lines[0] < before < lines[1]
    assert any("at the peak of the first micro-batch" in text for text in texts)
    kept = json.loads((tmp_path / "run" / "command.json").read_text())["outcome"]["memory_estimate"]
    assert kept["total"] == kept["process"] + kept["weights"] + kept["step"] + kept["activations"]


def test_what_the_count_imports_and_the_validation_views_belong_to_the_estimate(monkeypatch):
    held = iter([3 * GIB])
    monkeypatch.setattr(devices, "held_memory", lambda: next(held) if "torch.fx.experimental.symbolic_shapes" in sys.modules else 0)
    monkeypatch.setattr(devices, "free_memory", lambda device: 40 * GIB)
    _, estimate, _ = fit_memory(_resolve("tiny-vit"), [], "cpu", "fp32", Group(), fixed=False)
    assert estimate.process == 3 * GIB
    # A ViT of 3 million weights keeps 50 MiB of a micro-batch; its run took 0.9 GiB, of which the validation views 0.3.
    assert estimate.activations == pytest.approx(305 * 2**20, rel=0.01)
