"""`pretrain --plan` measures a few steps, says what the run will cost, and leaves no trace; its bytes are those of a real run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dagman import devices
from dagman.cli.training import pretrain as command
from dagman.cli.training.planning import describe_plan
from dagman.errors import DagmanError
from dagman.training.plan import energy
from dagman.training.plan.energy import EnergyMeter
from dagman.training.plan.rehearsal import Plan, plan_pretraining, prepare_rehearsal
from dagman.training.pretraining import pretrain


@pytest.fixture(scope="module")
def length() -> tuple[str, ...]:
    return ("train.steps=4", "train.checkpoint_every=2", "train.monitor_every=2", "train.keep_checkpoints=2")


def test_the_command_states_the_cost_and_writes_nothing(store, tiny, length, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*"))
    options = [f"--set={line}" for line in (*tiny, *length)]
    result = CliRunner().invoke(command.app, [str(store.path), "--plan", "--json", *options])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.output[result.output.index("{") :])
    assert list(tmp_path.iterdir()) == []
    assert sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*")) == before
    mean, low, high = plan["seconds"]
    assert low <= mean <= high
    assert plan["hours"][0] == pytest.approx((4 * mean + 3 * plan["evaluation_seconds"]) / 3600)
    # A run shorter than what is measured is measured all the same.
    assert (plan["steps"], plan["views"], plan["scans"], plan["measured_steps"]) == (4, 4, 3, 8)
    assert list(plan["micro_batches"]) == ["4", "2"]
    assert plan["memory_gib"] > 0


def test_evaluations_are_those_at_both_ends_and_between(store, tiny):
    plan = plan_pretraining(prepare_rehearsal(store.path, assignments=[*tiny, "train.steps=1", "train.monitor_every=7"]))
    run_seconds = plan.hours[0] * 3600
    assert run_seconds == pytest.approx(plan.seconds[0] + 2 * plan.evaluation_seconds)
    assert plan.disk_bytes < 2 * plan.checkpoint_bytes + 2_000_000


def test_bytes_on_disk_are_those_of_the_run_that_follows(store, tiny, length, tmp_path):
    plan = plan_pretraining(prepare_rehearsal(store.path, assignments=[*tiny, *length]))
    run = pretrain(store.path, tmp_path / "run", assignments=[*tiny, *length])
    newest = sum(file.stat().st_size for file in (run.path / "checkpoints" / "step-000004").iterdir())
    # Headers, queues and state.json come on top: much in a run of 0.2 MB, nothing in one of gigabytes.
    assert plan.checkpoint_bytes < newest < plan.checkpoint_bytes + 100_000
    whole = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    assert whole == pytest.approx(plan.disk_bytes, rel=0.35)


def test_a_size_that_does_not_fit_is_refused_before_the_first_step_with_what_would(store, tiny, length, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 2**20)
    with pytest.raises(DagmanError, match=r"needs about .* GiB of memory"):
        plan_pretraining(prepare_rehearsal(store.path, assignments=[*tiny, *length]))


def _plan(micro_batches: dict[int, float | None]) -> Plan:
    return Plan(
        steps=1,
        views=4,
        scans=1,
        stores=(),
        device="cpu",
        measured_steps=1,
        seconds=(1.0, 1.0, 1.0),
        hours=(1.0, 1.0, 1.0),
        waiting=0.0,
        loaders=0,
        reading=100.0,
        evaluation_seconds=0.0,
        memory_gib=1.0,
        disk_bytes=1,
        checkpoint_bytes=1,
        energy_kwh={},
        micro_batches=micro_batches,
        slow=(),
    )


@pytest.mark.parametrize(
    ("speeds", "best"),
    [({8: 10.0, 4: 10.4, 16: 9.0}, 8), ({8: 10.0, 4: 9.0, 16: 12.0}, 16), ({8: 10.0, 4: 11.0, 16: None}, 4)],
)
def test_another_micro_batch_is_suggested_where_it_is_clearly_quicker(speeds, best):
    assert _plan(speeds).best_micro_batch == best


def _count(folder: Path, number: int, microjoules: int) -> None:
    package = folder / f"intel-rapl:{number}"
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text("10000000\n")


def test_energy_of_processors_is_added_up_and_survives_a_counter_that_begins_again(tmp_path):
    _count(tmp_path, 0, 9_000_000)
    _count(tmp_path, 1, 1_000_000)
    meter = EnergyMeter("cpu", tmp_path)
    _count(tmp_path, 0, 2_000_000)
    _count(tmp_path, 1, 4_000_000)
    assert meter.read() == {"cpu": pytest.approx(3 + 3)}
    assert meter.read() == {"cpu": 0}


def test_energy_that_is_not_counted_is_left_out(tmp_path):
    assert EnergyMeter("cpu", tmp_path).read() == {}


class _Nvml:
    """A driver that counts another 5 J whenever it is asked, of the card of one UUID."""

    def __init__(self, uuid: str) -> None:
        self.uuid, self.millijoules, self.missing = uuid.encode(), 1_000_000, False

    def nvmlInit_v2(self) -> int:  # noqa: N802  (NVML's own name, as below)
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:  # noqa: N802
        return 0 if uuid == self.uuid else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, count) -> int:  # noqa: N802
        self.millijoules += 5000
        count._obj.value = self.millijoules
        return 3 if self.missing else 0


def test_energy_of_a_card_is_what_its_driver_counts(tmp_path, monkeypatch):
    nvml = _Nvml("GPU-1-2-3")
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setattr(energy.torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2-3"))
    _count(tmp_path, 0, 1_000_000)
    meter = EnergyMeter("cuda:1", tmp_path)
    _count(tmp_path, 0, 3_000_000)
    assert meter.read() == {"gpu": pytest.approx(5.0), "cpu": pytest.approx(2.0)}
    # A card that does not count, a driver that does not know it, and no driver.
    nvml.missing = True
    assert meter.read() == {"cpu": 0}
    nvml.uuid = b"GPU-other"
    assert EnergyMeter("cuda:1", tmp_path / "none").read() == {}

    def load(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(energy.ctypes, "CDLL", load)
    assert EnergyMeter("cuda:1", tmp_path / "none").read() == {}


def test_the_lines_name_each_cost_and_the_micro_batch_to_take():
    lines = dict(line.split(maxsplit=1) for line in describe_plan(_plan({8: 10.0, 4: 11.0, 16: None})))
    assert list(lines) == ["run", "time", "step", "evaluation", "reading", "memory", "disk", "energy", "micro-batch", "slow"]
    assert lines["memory"] == "1.00 GiB per process at the peak"
    assert lines["micro-batch"].startswith(
        "set train.micro_batch=4, which is faster (8: 10 views/s, 4: 11 views/s, 16: does not fit"
    )


def test_scans_are_to_be_prepared_first_and_a_run_needs_a_folder(scans, store):
    with pytest.raises(DagmanError, match="--plan needs a store"):
        prepare_rehearsal(scans)
    with pytest.raises(DagmanError, match="absent: does not exist"):
        prepare_rehearsal(scans / "absent")
    assert "Give --out RUN" in str(CliRunner().invoke(command.app, [str(store.path)]).exception)
