"""Proves that a store depends on the scans alone: not on order, workers, repeats, or on how often its writer was stopped or killed.

Faults are real where they can be: processes are killed, a small disk is full.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dagman.errors import ScanError, StoreError
from dagman.records.lock import hold_lock
from dagman.scans.faults import OWN_FAULT
from dagman.store.estimate import Estimate
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.upkeep.verification import verify_store
from dagman.store.workers import Lost, run_tasks
from dagman.store.writer import Progress, prepare_store

KILLED = """
import os, sys
import dagman.store.series as series
from dagman.store.writer import Progress, prepare_store

read = series.read_measured

def read_or_die(one):
    if "p2" in one.source and {deadly}:
        os.kill(os.getpid(), 9)
    return read(one)

# Outside the guard, so that worker processes get it too.
series.read_measured = read_or_die

def stop(event):
    if isinstance(event, Progress) and event.done == {stop_at}:
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    print(prepare_store(sys.argv[1], sys.argv[2], workers=2, on_event=stop))
"""


def list_scans(out: Path) -> dict[str, bytes]:
    """What must not differ between two stores: every scan file, the manifest, and what was rejected."""
    files = [*out.rglob("*.b2nd"), *(out / name for name in ("manifest.parquet", "rejected.csv", "store.json"))]
    assert not (out / "staging").exists()
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def read_rejected(out: Path) -> dict[str, str]:
    with open(out / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def run_script(tmp_path: Path, cohort: Path, out: Path, **values: object) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "prepare_and_die.py"
    script.write_text(KILLED.format(**values))
    return subprocess.run([sys.executable, script, cohort, out], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wanted(cohort, tmp_path_factory) -> dict[str, bytes]:
    """The cohort's store, prepared in one go by one process."""
    out = tmp_path_factory.mktemp("wanted") / "store"
    prepare_store(cohort, out, workers=1)
    return list_scans(out)


def test_what_was_kept_and_rejected_is_counted_and_listed(cohort, tmp_path):
    events = []
    summary = prepare_store(cohort, tmp_path / "store", workers=1, on_event=events.append)
    assert (summary.kept, summary.already, summary.rejected) == (5, 0, 2)
    rejected = read_rejected(tmp_path / "store")
    assert rejected == {one.source: one.reason for one in summary.refusals}
    assert rejected[str(cohort / "p9" / "again.nii")] == f"same content as {cohort / 'p3' / 'ct.nii.gz'}"
    assert str(cohort / "broken.nii.gz") in rejected
    assert summary.bytes == sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.b2nd"))
    estimate, *progress = events
    assert isinstance(estimate, Estimate)
    assert (estimate.series, estimate.done, estimate.workers) == (6, 0, 1)
    assert summary.bytes / 10 < estimate.bytes < summary.bytes * 10
    assert estimate.free_bytes > 0
    assert [(one.done, one.total) for one in progress] == [(done, 6) for done in range(1, 7)]
    assert all(isinstance(one, Progress) and one.refused is None for one in progress)


def test_workers_and_order_change_nothing(cohort, wanted, tmp_path):
    paths = [cohort / "p9", cohort / "broken.nii.gz", *(cohort / f"p{number}" for number in (3, 1, 4, 0, 2))]
    summary = prepare_store(paths, tmp_path / "store", workers=2)
    found = list_scans(tmp_path / "store")
    assert {name: found[name] for name in found if name.endswith("b2nd")} == {n: w for n, w in wanted.items() if n.endswith("b2nd")}
    rows = [(row.id, row.checksum, row.source_hash) for row in Store(tmp_path / "store").rows]
    prepare_store(sorted(paths), tmp_path / "other", workers=1)
    assert [(row.id, row.checksum, row.source_hash) for row in Store(tmp_path / "other").rows] == rows
    assert (summary.kept, summary.rejected) == (5, 2)
    assert found["rejected.csv"] == wanted["rejected.csv"]


def test_the_same_call_again_does_nothing_again(cohort, tmp_path, monkeypatch, wanted):
    prepare_store(cohort, tmp_path / "store", workers=1)
    monkeypatch.setattr("dagman.store.series.read_measured", pytest.fail)
    summary = prepare_store(cohort, tmp_path / "store", workers=1)
    assert (summary.kept, summary.already, summary.rejected) == (5, 5, 2)
    assert list_scans(tmp_path / "store") == wanted


def test_new_scans_are_added_to_a_store(cohort, tmp_path, wanted):
    for number in (4, 2, 9):
        prepare_store(cohort / f"p{number}", tmp_path / "store", workers=1)
    summary = prepare_store(cohort, tmp_path / "store", workers=1)
    # The copy was there first, so it stays and the original is the one named.
    assert read_rejected(tmp_path / "store")[str(cohort / "p9" / "again.nii")].startswith("same content as")
    assert (summary.kept, summary.rejected) == (5, 2)
    assert {name for name in list_scans(tmp_path / "store") if name.endswith("b2nd")} == {n for n in wanted if n.endswith("b2nd")}


def test_a_scan_that_moved_is_not_its_own_copy(cohort, tmp_path):
    prepare_store(cohort / "p1", tmp_path / "store", workers=1)
    shutil.copytree(cohort / "p1", tmp_path / "elsewhere")
    for already in (0, 1):
        summary = prepare_store(tmp_path / "elsewhere", tmp_path / "store", workers=1)
        assert (summary.kept, summary.already, summary.rejected) == (1, already, 0)
    assert len(Store(tmp_path / "store")) == 1


def test_two_scans_with_one_file_name_are_both_kept(nifti_of, trunk, tmp_path):
    nifti_of(tmp_path / "a" / "ct.nii.gz", trunk(1))
    nifti_of(tmp_path / "b" / "ct.nii.gz", trunk(2))
    assert prepare_store([tmp_path / "a", tmp_path / "b"], tmp_path / "store", workers=1).kept == 2


@pytest.mark.parametrize("stop_at", [2])
def test_a_killed_writer_leaves_a_store_that_reads_and_goes_on(cohort, wanted, tmp_path, stop_at):
    out = tmp_path / "store"
    assert run_script(tmp_path, cohort, out, deadly=False, stop_at=stop_at).returncode == -signal.SIGKILL
    before = Store(out)
    assert 1 <= len(before) <= stop_at
    assert all(before.read(row.id).shape == row.shape for row in before.rows)
    summary = prepare_store(cohort, out, workers=1)
    assert summary.already >= 1
    assert list_scans(out) == wanted
    assert verify_store(Store(out)) == []


def test_a_killed_worker_costs_its_scan_alone(cohort, tmp_path):
    done = run_script(tmp_path, cohort, tmp_path / "store", deadly=True, stop_at=99)
    assert done.returncode == 0, done.stderr
    assert len(Store(tmp_path / "store")) == 4
    reason = read_rejected(tmp_path / "store")[str(cohort / "p2" / "ct.nii.gz")]
    assert reason == "its process was ended by signal 9, perhaps for lack of memory; try again with --workers 1"


def test_processes_that_cannot_start_are_explained(cohort, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        f"from dagman.store.writer import prepare_store\nprepare_store({str(cohort)!r}, {str(tmp_path / 'store')!r}, workers=2)"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "the worker processes cannot start" in done.stderr
    assert 'if __name__ == "__main__"' in done.stderr


def test_a_signal_to_end_leaves_a_folded_store(cohort, wanted, tmp_path):
    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(cohort, tmp_path / "store", workers=1, on_event=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "store" / "manifest.parquet").exists()
    (tmp_path / "store" / "journal.jsonl").unlink()
    assert len(Store(tmp_path / "store")) == 2
    prepare_store(cohort, tmp_path / "store", workers=1)
    assert list_scans(tmp_path / "store") == wanted


def test_lost_and_damaged_files_are_made_again(cohort, wanted, tmp_path):
    prepare_store(cohort, tmp_path / "store", workers=1)
    first, second, *_ = sorted((tmp_path / "store").rglob("*.b2nd"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    assert len(verify_store(Store(tmp_path / "store"))) == 2
    prepare_store(cohort, tmp_path / "store", workers=1)
    assert list_scans(tmp_path / "store") == wanted


def test_a_full_disk_stops_with_a_store_that_goes_on(cohort, wanted, tmp_path, monkeypatch):
    written: list[Path] = []
    write = Path.write_bytes

    def write_until_full(path: Path, data: bytes) -> int:
        if path.suffix == ".b2nd" and len(written) == 2:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        return write(path, data)

    out = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_until_full)
        with pytest.raises(StoreError) as caught:
            prepare_store(cohort, out, workers=1)
    wanted_text = f"{out}: the disk is full; what was prepared so far is kept. Free some space and repeat the command."
    assert str(caught.value) == wanted_text
    assert len(Store(out)) == 2
    assert verify_store(Store(out)) == []
    prepare_store(cohort, out, workers=1)
    assert list_scans(out) == wanted


def test_a_disk_that_is_really_full_keeps_what_was_done(cohort, wanted, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    largest = max(len(data) for data in wanted.values())
    size = f"size={int(2.5 * largest)}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(StoreError, match=r"the disk is full; what was prepared so far is kept\."):
            prepare_store(cohort, disk / "store", workers=2)
        store = Store(disk / "store")
        assert len(store) >= 1
        assert all(store.read(row.id).voxels.any() for row in store.rows)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        prepare_store(cohort, disk / "store", workers=1)
        assert list_scans(disk / "store") == wanted
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_one_writer_at_a_time(cohort, tmp_path):
    with hold_lock(tmp_path / "store"), pytest.raises(StoreError, match="is writing here"):
        prepare_store(cohort, tmp_path / "store", workers=1)


def test_a_store_made_otherwise_is_refused(cohort, tmp_path):
    prepare_store(cohort / "p1", tmp_path / "store", workers=1)
    with pytest.raises(
        StoreError, match=r"was prepared with spacing 2\.0 \(not 3\.0\)\. Give the same settings, or another --out\."
    ):
        prepare_store(cohort, tmp_path / "store", Preparation(spacing=3), workers=1)


def test_a_store_that_another_process_made_otherwise_in_the_meantime_is_refused(cohort, tmp_path, monkeypatch):
    import dagman.store.writer as writer

    find = writer.find_series

    def find_slowly(paths, **options):
        monkeypatch.setattr(writer, "find_series", find)
        prepare_store(cohort / "p1", tmp_path / "store", Preparation(spacing=3), workers=1)
        return find(paths, **options)

    monkeypatch.setattr(writer, "find_series", find_slowly)
    with pytest.raises(StoreError, match=r"was prepared with spacing 3\.0 \(not 2\.0\)"):
        prepare_store(cohort, tmp_path / "store", workers=1)
    assert len(Store(tmp_path / "store")) == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_not_overwritten(cohort, tmp_path, kind):
    out = tmp_path / "mine"
    (out if kind == "file" else out / "notes.txt").parent.mkdir(exist_ok=True)
    (out if kind == "file" else out / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"is a file, not a folder|exists and is not a store"):
        prepare_store(cohort, out, workers=1)


def test_all_rejected_says_where_the_reasons_are(nifti_of, tmp_path):
    nifti_of(tmp_path / "scans" / "labels.nii.gz", np.arange(1000, dtype=np.int16).reshape(10, 10, 10) % 7)
    (tmp_path / "scans" / "empty.nii.gz").write_bytes(b"")
    out = tmp_path / "store"
    with pytest.raises(StoreError) as caught:
        prepare_store(tmp_path / "scans", out, workers=1)
    rejected = read_rejected(out)
    assert len(rejected) == 2
    text = str(caught.value)
    assert text.startswith(f"{out}: all 2 series were rejected; the first: ")
    assert any(reason.rstrip(".") in text for reason in rejected.values())
    assert text.endswith(f". All are listed in {out / 'rejected.csv'}.")


def test_an_empty_folder_makes_no_store(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(ScanError):
        prepare_store(tmp_path / "scans", tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()


def test_a_fault_in_one_scan_is_named_and_the_others_go_on(cohort, tmp_path, monkeypatch):
    import dagman.store.series as series

    prepare = series.prepare_scan

    def prepare_or_fail(scan, preparation):
        if "p1" in scan.source:
            raise MemoryError
        if "p2" in scan.source:
            raise ZeroDivisionError("a fault")
        return prepare(scan, preparation)

    monkeypatch.setattr(series, "prepare_scan", prepare_or_fail)
    assert prepare_store(cohort, tmp_path / "store", workers=1).kept == 3
    rejected = read_rejected(tmp_path / "store")
    assert rejected[str(cohort / "p1" / "ct.nii.gz")] == "too large for memory: try again with --workers 1"
    reason = rejected[str(cohort / "p2" / "ct.nii.gz")]
    assert re.fullmatch(rf"cannot be prepared \({OWN_FAULT}: ZeroDivisionError in series\.py, line \d+\)", reason)


def test_mr_is_kept_when_the_user_says_so(nifti_of, tmp_path):
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 24),) * 3, indexing="ij")
    bright = 400 * np.exp(-((x / 0.5) ** 2 + (y / 0.5) ** 2 + (z / 0.5) ** 2)) + np.random.default_rng(0).gamma(2, 3, x.shape)
    nifti_of(tmp_path / "mr.nii.gz", bright.astype(np.float32))
    with pytest.raises(StoreError, match="the only series was rejected"):
        prepare_store(tmp_path / "mr.nii.gz", tmp_path / "store", workers=1)
    assert prepare_store(tmp_path / "mr.nii.gz", tmp_path / "store", workers=1, modality="mr").kept == 1
    (row,) = Store(tmp_path / "store").rows
    assert row.modality == "MR"
    assert row.hu_evidence is None
    assert Store(tmp_path / "store").read(row.id).scale == pytest.approx(np.percentile(bright, (0.5, 99.5)), rel=1e-4)
    assert read_rejected(tmp_path / "store") == {}


def test_two_maps_of_small_numbers_are_two_scans(nifti_of, trunk, tmp_path):
    for number in (1, 2):
        nifti_of(tmp_path / "scans" / f"adc{number}.nii.gz", ((trunk(number) + 1100) * 1e-6).astype(np.float32))
    assert prepare_store(tmp_path / "scans", tmp_path / "store", workers=1, modality="mr").kept == 2


def test_results_come_from_every_process_that_lives():
    code = "__import__('os').kill(__import__('os').getpid(), 9)"
    results = dict(run_tasks(eval, ["1 + 1", code, "2 + 2", "__import__('os')._exit(3)", "3 + 3"], workers=2))
    assert [results[index] for index in (0, 2, 4)] == [2, 4, 6]
    assert isinstance(results[1], Lost)
    assert "ended by signal 9" in results[1].reason
    assert "ended with code 3" in results[3].reason
    assert dict(run_tasks(eval, [], workers=2)) == {}


def test_a_worker_that_is_killed_while_it_waits_costs_one_task():
    # Its result, when it is unpacked here, kills the process it came from and waits until that is dead.
    wait = "__import__('os').waitid(__import__('os').P_PID, {0}, __import__('os').WEXITED | __import__('os').WNOWAIT)"
    code = f"[__import__('os').kill({{0}}, 9), {wait}]"
    deadly = f"type('Deadly', (), {{'__reduce__': lambda self: (eval, ({code!r}.format(__import__('os').getpid()),))}})()"
    results = dict(run_tasks(eval, [deadly, "1 + 1", "2 + 2"], workers=2))
    assert sorted(results) == [0, 1, 2]
    lost = [result for result in results.values() if isinstance(result, Lost)]
    assert all("ended by signal 9" in one.reason for one in lost)
    assert len(lost) <= 1
