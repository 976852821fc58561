"""`dagman.pretrain`: from scans or a store to a run, or on from where a run stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dagman import devices
from dagman.errors import DagmanError, RunError, is_full_disk
from dagman.records.counts import count_noun
from dagman.records.lock import hold_lock
from dagman.records.provenance import write_command
from dagman.records.stopping import REQUEUES, catch_stops
from dagman.settings import Settings, load_settings, resolve_settings
from dagman.settings.resolution import list_idle_settings
from dagman.store.manifest import Store
from dagman.store.preparation import Preparation
from dagman.store.writer import prepare_store
from dagman.training.assembly import check_backbone
from dagman.training.checkpoints import list_checkpoints, read_state, set_damaged_aside
from dagman.training.parallel.group import Group, join_group, start_watch
from dagman.training.parallel.sharing import check_sharing, describe_ranks, list_own_pairs
from dagman.training.resources.fitting import fit_memory
from dagman.training.run import Run, write_note, write_settings
from dagman.training.start.adoption import adopt_settings, choose_presets, describe_parts
from dagman.training.start.identity import (
    FREE_TO_CHANGE,
    hash_grids,
    hash_scans,
    hash_settings,
    list_changed_precision,
    refuse_other_ranks,
    refuse_other_store,
)
from dagman.training.start.mixture import Mixture, describe_shares, is_store, list_parts, split_weight
from dagman.training.start.record import check_start
from dagman.training.start.settling import settle_modality, settle_spacing
from dagman.training.start.source import Source, resolve_source
from dagman.training.summary import describe_run, list_run_warnings
from dagman.training.trainer import Event, Trainer
from dagman.training.views import ViewDataset, find_usable, refuse_repetition, select_rows


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
    """Pretrain an encoder; gives the run, whose encoder `dagman.load` reads.

    Args:
        source: A store, several with weights ("a:2", "b:1"), or scans (files or folders), prepared into `out/store` first.
        out: The run folder.
        size: A preset of the model: "tiny", "small" or "paper".
        method: A preset of the method, "dagman" or another of `dagman.settings.presets`.
        config: A TOML file of settings.
        assignments: Single settings, "key=value"; they win over the file and the presets.
        patients: Whose the scans are, where scans are given and their files do not state it; as in `prepare_store`.
        continue_from: A run, an encoder, or a file of MONAI that the first weights are taken from, with its sizes.
        resume: Refuse to begin a run: there must be one in `out`. Without it, a run that is there is continued as well.
        on_event: Called with each event's name ("choice", "warning", "begin", "step", "monitor", "checkpoint") and values.
        on_preparation: Passed to `prepare_store` as `on_event`.

    Raises:
        RunError: `out` exists already, the settings or the store differ from the run's, or no scan is large enough.
        SettingsError, StoreError, ScanError: From the settings, the store, the scans.
    """
    out = Path(out)
    exists = (out / "settings.toml").exists()
    settings, given, start, refused = _load(size, method, config, assignments, None if exists else continue_from)
    with join_group(settings.train.rank_timeout) as group, contextlib.ExitStack() as stack:
        on_event = on_event if on_event is not None and group.writes else _ignore
        with group.together():
            if refused is not None:
                raise refused
            check_backbone(settings)
            if exists and continue_from is not None:
                check_start(out, continue_from)
            settings, reasons, idle = _settle(out, settings, given, exists=exists, resume=resume)
            _refuse_scans(source, group)
        with group.together():
            if group.writes:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(out, RunError))
            store, prepared = _open_store(source, out, settings, on_preparation, patients)
            settings = settle_spacing(settings, store, asked=exists or "view.spacing" in given)
            settings = settings if exists else settle_modality(settings, store)
        return _train(store, out, settings, given, prepared + reasons, idle, exists, on_event, group, start)


def _ignore(name: str, values: Mapping[str, Any]) -> None:
    """The listener of a process that does not write."""


def _load(
    size: str | None, method: str | None, config: str | Path | None, assignments: Iterable[str], continue_from: str | None
) -> tuple[Settings, frozenset[str], Source | None, DagmanError | None]:
    """Settings, the keys that were given, and what the run goes on from; where they are refused the defaults, and why.

    Not raised, so that one rank says it for all.
    """
    try:
        start = None if continue_from is None else resolve_source(continue_from)
        if start is not None:
            size, method = choose_presets(start, size, method)
        settings, given = load_settings(size, method, config=config, assignments=assignments)
        return settings if start is None else adopt_settings(settings, given, start), given, start, None
    except DagmanError as error:
        return Settings(), frozenset(), None, error


def _settle(
    out: Path, settings: Settings, given: frozenset[str], *, exists: bool, resume: bool
) -> tuple[Settings, list[str], list[str]]:
    """Resolved settings, the reasons for what was chosen, and settings without effect; exists: whether the run is there already."""
    if out.exists() and not out.is_dir():
        raise RunError("is a file", where=out, do="Choose another folder for --out")
    if resume and not exists:
        raise RunError("holds no run to resume", where=out, do="Leave --resume out to begin one, or name the folder of a run")
    if not exists and out.exists() and any(p.name not in {".lock", "store"} for p in out.iterdir()):
        raise RunError("exists and is not a run", where=out, do="Choose another folder for --out")
    if exists:
        return _settle_with_run(out, settings, given), [], []
    settings, reasons = resolve_settings(settings)
    return settings, reasons, list_idle_settings(settings, given)


def _refuse_scans(source: str | Path | Sequence[str | Path], group: Group) -> None:
    """Raise RunError for scans where several ranks would prepare them beside one another."""
    paths = [source] if isinstance(source, str | Path) else source
    if group.size > 1 and not all(is_store(path) for path in paths):
        raise RunError(
            f"{group.size} ranks read a store, and {paths[0]} is none", do="Prepare it first: dagman prepare SCANS --out STORE"
        )


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
        device = devices.choose_device(settings.train.device)
        precision = devices.choose_precision(settings.train.precision, device.value)
        kernels = devices.choose_kernels(settings.train.kernels, device.value)
        group.use_device(torch.device(device.value), settings.train.rank_timeout)
    threads = devices.choose_threads()
    torch.set_num_threads(threads.value)
    allocator = devices.tune_allocator(device=device.value)
    choices: list[devices.Choice[str] | devices.Choice[int]] = [device, precision, kernels, threads, allocator]
    state = {
        "store": hash_scans(usable, parts),
        "grid": hash_grids(store, usable),
        "scans": len(usable),
        "precision": precision.value,
        "threads": threads.value,
        "settings": hash_settings(settings),
    }
    with group.together():
        damaged = set_damaged_aside(out) if group.writes else []
    with group.together():
        before = read_state(out) if list_checkpoints(out) else state
        refuse_other_ranks(group, settings, state, kernels.value)
        refuse_other_store(out, before, state)
    settings, estimate, reasons = fit_memory(
        settings, reasons, device.value, precision.value, group, fixed=exists or "train.micro_batch" in given
    )
    state["settings"] = hash_settings(settings)
    workers = (0 if device.value == "cpu" else 4) if settings.train.workers == "auto" else int(settings.train.workers)
    train, own = settings.train, list_own_pairs(settings.train.batch // 2, group.rank, group.size)
    dataset = ViewDataset(store, usable, settings.view, train.batch, settings.seed, train.steps, own, parts)
    trainer = Trainer(
        settings,
        dataset,
        out,
        device=device.value,
        precision=precision.value,
        workers=workers,
        state=state,
        on_event=on_event,
        group=group,
        estimate=estimate,
    )
    for network in (trainer.student, trainer.teacher):
        if network is not None:
            network.encoder.use_kernels(kernels.value)
    noted = {} if exists else {**{f"idle: {text}": text for text in idle}, **list_run_warnings(settings)}
    warnings = [*noted.values(), *list_changed_precision(before, state)]
    lines = [*reasons, *devices.describe_choices(choices), estimate.describe()]
    lines += describe_run(settings, trainer.student, dataset, left_out)
    lines += describe_shares(store, parts, train.steps * train.batch // 2)
    lines += describe_ranks(settings, trainer.student, group, device.value)
    if exists:
        trainer.resume()
        lines.append(f"resumed at step {trainer.step} of {settings.train.steps}")
    elif start is not None:
        lines += describe_parts(trainer.start_from(start), start)
        # The first weights are not random.
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

    with catch_stops(stop), _explain_full_disk(out):
        trainer.train()
    run = Run(out)
    run.stopped = trainer.ending.reason
    return run


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
        raise RunError("--patients is for scans, and this is a store", where=paths[0], do="Give it to dagman prepare")
    if stores and len(stores) < len(paths):
        other = next(path for path in paths if path not in stores)
        raise RunError(f"is not a store, but {stores[0]} is", where=other, do="Give stores alone, or scans alone")
    if stores:
        return (Store(paths[0]) if len(paths) == 1 else Mixture(parts)), []
    done = prepare_store(paths, out / "store", Preparation(spacing=settings.view.spacing), patients=patients, on_event=on_event)
    refused = f", {done.rejected} rejected: see {done.path / 'rejected.csv'}" if done.rejected else ""
    return Store(done.path), [f"store: {count_noun(done.kept, 'scan')} prepared{refused}", *done.notes]


def _settle_with_run(out: Path, asked: Settings, given: frozenset[str]) -> Settings:
    """The run's settings, but for those free to change; what was asked for and differs is refused by name."""
    stored = Run(out).settings
    values = stored.model_dump()
    differing = []
    for key in sorted(given):
        wanted, had = _look_up(asked.model_dump(), key), _look_up(values, key)
        if wanted in ("auto", had):
            continue
        if key in FREE_TO_CHANGE:
            section, _, name = key.rpartition(".")
            values[section][name] = wanted
        else:
            differing.append(f"{key} is {had} in the run and {wanted} here")
    if differing:
        raise RunError("; ".join(differing), where=out, do="Resume with the run's own settings, or choose another folder")
    return Settings.model_validate(values)


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


@contextmanager
def _explain_full_disk(out: Path) -> Iterator[None]:
    """One line where the disk is full, or the run's folder is gone: what was whole stays so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not (out / "settings.toml").is_file():
            raise RunError("was deleted while the run went on", where=out, do="Repeat the command to begin again") from None
        if not is_full_disk(error):
            raise
        kept = "the last checkpoint is whole" if list_checkpoints(out) else "no checkpoint had been written"
        what = "there is no space left to write in"
        raise RunError(what, where=out, do=f"Free some, then repeat the command; {kept}") from None
