"""`dagman.pretrain`: starts a run on a store or on scans, or resumes one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dagman.errors import RunError, is_full_disk
from dagman.records.counts import count_noun
from dagman.records.lock import hold_lock
from dagman.records.names import suggest_path
from dagman.records.provenance import write_command
from dagman.records.stopping import REQUEUES, catch_stops
from dagman.settings import Settings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.upkeep.checks import SharedChecks
from dagman.store.writer import prepare_store
from dagman.training.assembly import check_backbone
from dagman.training.checkpoints import list_checkpoints, read_state, set_damaged_aside
from dagman.training.learner import Learner
from dagman.training.parallel.group import Group, join_group, start_watch
from dagman.training.parallel.meeting import POLL_S
from dagman.training.parallel.sharing import check_sharing, describe_ranks, list_own_pairs
from dagman.training.resources.fitting import fit_memory
from dagman.training.resources.machine import choose_machine
from dagman.training.run import Run, write_note, write_settings
from dagman.training.start.adoption import describe_parts
from dagman.training.start.identity import (
    hash_grids,
    hash_scans,
    list_changed_rounding,
    list_settings,
    refuse_other_ranks,
    refuse_other_store,
)
from dagman.training.start.mixture import describe_shares, is_store, list_parts, open_stores, split_weight
from dagman.training.start.record import check_start
from dagman.training.start.settling import load_asked, settle_modality, settle_settings, settle_spacing
from dagman.training.start.source import Source
from dagman.training.summary import describe_run, list_run_warnings
from dagman.training.trainer import Event, Trainer
from dagman.training.views import ViewDataset, find_usable, refuse_repetition, select_rows

UNSHARED_S = 60.0
"""Seconds after which a run folder that a rank does not see is not shared; NFS may cache its absence for half of that. [ours]"""


def pretrain(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    size: str | None = None,
    method: str | None = None,
    config: str | Path | None = None,
    assignments: Iterable[str] = (),
    patients: str | Path | None = None,
    continue_from: str | None = None,
    resume: bool = False,
    on_event: Event | None = None,
    on_preparation: Callable[..., None] | None = None,
) -> Run:
    """Pretrain an encoder; returns the run, whose encoder `dagman.load` reads.

    Args:
        source: A store, several with weights ("a:2", "b:1"), or scans (files or folders), prepared into `out/store` first.
        out: The run folder.
        size: A preset of the model: "tiny", "small" or "paper".
        method: A preset of the method, "dagman" or another of `dagman.settings.presets`.
        config: A TOML file of settings.
        assignments: Single settings, "key=value"; they override the file and the presets.
        patients: Who the scans are of, if scans are given whose files do not state it; as in `prepare_store`.
        continue_from: A run, an encoder, or a MONAI file to take the initial weights and the model size from.
        resume: Raise an error if `out` holds no run. A run in `out` is resumed with or without it.
        on_event: Called with each event's name ("choice", "warning", "begin", "step", "monitor", "checkpoint") and values.
        on_preparation: Passed to `prepare_store` as `on_event`.

    Raises:
        RunError: `out` is not a run, its settings or its store differ from those given, or no scan is large enough.
        SettingsError, StoreError, ScanError: For the settings, the store, the scans.
    """
    out = Path(out)
    exists = (out / "settings.toml").exists()
    settings, given, start, refused = load_asked(size, method, config, assignments, None if exists else continue_from)
    with join_group(settings.train.rank_timeout) as group, contextlib.ExitStack() as stack:
        on_event = on_event if on_event is not None and group.writes else _ignore
        with group.together():
            if refused is not None:
                raise refused
            check_backbone(settings)
            if exists and continue_from is not None:
                check_start(out, continue_from)
            settings, reasons, idle = settle_settings(out, settings, given, exists=exists, resume=resume)
            _refuse_scans(source, group)
        with group.together():
            if group.writes:
                stack.enter_context(hold_lock(out, RunError))
            store, prepared = _open_store(source, out, settings, on_preparation, patients)
            settings = settle_spacing(settings, store, asked=exists or "view.spacing" in given)
            settings = settings if exists else settle_modality(settings, store)
        return _train(store, out, settings, given, prepared + reasons, idle, exists, on_event, group, start)


def _ignore(name: str, values: Mapping[str, Any]) -> None:
    """The listener of a rank that does not write."""


def _refuse_scans(source: str | Path | Sequence[str | Path], group: Group) -> None:
    """Raise RunError for scans given to several ranks, all of which would prepare them."""
    paths = [source] if isinstance(source, str | Path) else source
    if group.size == 1 or not (others := [split_weight(path)[0] for path in paths if not is_store(path)]):
        return
    if not others[0].exists():
        raise RunError("does not exist", where=others[0], do=suggest_path(others[0], "Give a store"))
    raise RunError(
        f"{group.size} ranks need a store, and this is not one",
        where=others[0],
        do="Prepare it first: dagman prepare SCANS --out STORE",
    )


def _require_shared(out: Path, group: Group) -> None:
    """Raise RunError unless every rank reads the lock that rank 0 holds in the run folder: one without it would not resume."""
    lock, until = out / ".lock", time.monotonic() + UNSHARED_S
    held = group.broadcast(lock.read_text() if group.writes else "")
    while not (lock.is_file() and lock.read_text() == held):
        if time.monotonic() > until:
            what = f"rank {group.rank} does not see the run folder that rank 0 writes to"
            raise RunError(what, where=out, do="Give all ranks the same --out, on a file system that all hosts share")
        time.sleep(POLL_S)


def _train(
    store: Store,
    out: Path,
    settings: Settings,
    given: frozenset[str],
    reasons: list[str],
    idle: list[str],
    exists: bool,
    on_event: Event,
    group: Group,
    start: Source | None,
) -> Run:
    with group.together():
        rows = select_rows(store.rows, settings.view)
        usable, left_out = find_usable({row.id: row.shape for row in rows}, settings.view)
        if not exists:
            refuse_repetition(settings, len(usable))
        parts = list_parts(store, usable)
        check_sharing(settings, given, group.size, len(usable))
        machine = choose_machine(settings)
        group.use_device(torch.device(machine.device.value), settings.train.rank_timeout)
    chosen, threads = machine.prepare()
    device, precision = machine.device.value, machine.precision.value
    state = {
        "store": hash_scans(usable, parts),
        "grid": hash_grids(store, usable),
        "scans": len(usable),
        "precision": precision,
        "threads": threads,
        "settings": list_settings(settings),
        **machine.list_choices(),
    }
    with group.together():
        _require_shared(out, group)
    with group.together():
        damaged = set_damaged_aside(out) if group.writes else []
    with group.together():
        before = read_state(out) if list_checkpoints(out) else state
        refuse_other_ranks(group, settings, state)
        refuse_other_store(out, before, state, settings)
    settings, estimate, reasons = fit_memory(
        settings, reasons, device, precision, group, fixed=exists or "train.micro_batch" in given
    )
    state |= {"settings": list_settings(settings), "micro-batch": settings.train.micro_batch}
    train, own = settings.train, list_own_pairs(settings.train.batch // 2, group.rank, group.size)
    dataset = ViewDataset(store, usable, settings.view, train.batch, settings.seed, train.steps, own, parts)
    learner = Learner(settings, device=device, precision=precision, group=group, **machine.list_fast_paths())
    trainer = Trainer(learner, dataset, out, workers=machine.loaders.value, state=state, on_event=on_event, estimate=estimate)
    noted = {} if exists else {**{f"idle: {text}": text for text in idle}, **list_run_warnings(settings)}
    warnings = [*noted.values(), *list_changed_rounding(before, state)]
    lines = [*reasons, *chosen, estimate.describe()]
    lines += describe_run(settings, learner.student, dataset, left_out)
    lines += describe_shares(store, parts, train.steps * train.batch // 2)
    lines += describe_ranks(settings, learner.student, group, device)
    if exists:
        trainer.resume()
        lines.append(f"resumed at step {trainer.step} of {settings.train.steps}")
    elif start is not None:
        lines += describe_parts(trainer.start_from(start), start)
        # The initial weights are not random.
        warnings = [text for text in warnings if text != noted.pop("settings: memory", None)]
    if not exists and group.writes:
        _write_beginning(out, settings, lines, noted)
    for line in damaged:
        write_note(out, trainer.step, f"damaged: {line}", line)
    warnings += damaged
    for line in lines:
        on_event("choice", {"text": line})
    for warning in warnings:
        on_event("warning", {"step": trainer.step, "key": "idle", "text": warning})
    if group.writes:
        cohort = trainer.cohort
        inputs = {
            "store": store.path.name if len(parts) == 1 else [one.path.name for one in getattr(store, "stores", ())],
            "scans": state["store"],
            "count": cohort.scans,
            "patients": cohort.patients,
            "copies": cohort.copies,
            "left_out": left_out,
        }
        about = {"memory_estimate": estimate.to_json()}
        write_command(out, "pretrain", settings=settings.model_dump(mode="json"), inputs=inputs, outcome=about)
    on_event("begin", {"step": trainer.step, "steps": settings.train.steps})
    start_watch(group, settings.train.rank_timeout)

    def stop(number: int) -> None:
        trainer.ending.ask("requeue" if number in REQUEUES else "interrupt")

    with catch_stops(stop), _explain_full_disk(out), _share_checks(store, out, group):
        trainer.train()
    run = Run(out)
    run.stopped = trainer.ending.reason
    return run


@contextmanager
def _share_checks(store: Store, out: Path, group: Group) -> Iterator[None]:
    """Each scan's file is checked once meanwhile, by one of all processes that read views."""
    checks = SharedChecks(out / "checked.bin", [row.id for row in store.rows])
    if group.writes:
        checks.begin()
    store.share_checks(checks)
    try:
        yield
    finally:
        if group.writes:
            checks.end()


def _write_beginning(out: Path, settings: Settings, choices: Sequence[str], noted: Mapping[str, str]) -> None:
    write_settings(out, settings)
    for line in choices:
        write_note(out, 0, "choice", line)
    for key, warning in noted.items():
        write_note(out, 0, key, warning)


def _open_store(
    source: str | Path | Sequence[str | Path],
    out: Path,
    settings: Settings,
    on_event: Callable[..., None] | None,
    patients: str | Path | None,
) -> tuple[Store, list[str]]:
    parts = [split_weight(path) for path in ([source] if isinstance(source, str | Path) else source)]
    paths = [path for path, _ in parts]
    stores = [path for path in paths if is_store(path)]
    if stores and patients is not None:
        raise RunError("--patients applies to scans, but this is a store", where=paths[0], do="Pass it to dagman prepare")
    if stores and len(stores) < len(paths):
        other = next(path for path in paths if path not in stores)
        raise RunError(f"is not a store, but {stores[0]} is", where=other, do="Give only stores, or only scans")
    if stores:
        return open_stores(parts), []
    done = prepare_store(paths, out / "store", Preparation(spacing=settings.view.spacing), patients=patients, on_event=on_event)
    refused = f", {done.rejected} rejected: see {done.path / 'rejected.csv'}" if done.rejected else ""
    return Store(done.path), [f"store: {count_noun(done.kept, 'scan')} prepared{refused}", *done.notes]


@contextmanager
def _explain_full_disk(out: Path) -> Iterator[None]:
    """Raise RunError if the disk is full or the run folder is gone; the files that were complete remain so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not (out / "settings.toml").is_file():
            raise RunError("was deleted during the run", where=out, do="Repeat the command to start again") from None
        if not is_full_disk(error):
            raise
        kept = "the last checkpoint is intact" if list_checkpoints(out) else "no checkpoint had been written"
        what = "there is no disk space left"
        raise RunError(what, where=out, do=f"Free some space, then repeat the command; {kept}") from None
