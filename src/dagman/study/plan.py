"""Read a study file (TOML) and list its commands: every pretraining, then every task on the runs of each size and seed.

Each job is one `dagman` command that writes one folder and resumes when it is repeated, so that a study can be interrupted and
resumed, spread over devices, or passed to a scheduler.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dagman.errors import RunError, SettingsError
from dagman.records.names import suggest_name
from dagman.settings import list_presets
from dagman.settings.choices import check_name
from dagman.settings.wanted import state_wanted
from dagman.tasks.registry import TASKS
from dagman.training.run import Run

Option = str | int | float | bool | list[str | int | float]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskPlan(_Section):
    """A downstream task of a study: the task's own command, with its options."""

    name: str
    """How the study calls it."""
    task: Annotated[str, BeforeValidator(lambda name: check_name(name, TASKS))]
    """The command."""
    table: str
    """The table of items, relative to the study's file."""
    measure: str
    """The measure that the study's tables show, such as auc, harrell_c or dice."""
    method: str | None = None
    """The method whose measure is shown, such as linear or finetune; default: the first."""
    baselines: list[str] = ["scratch"]
    """Models to compare with the runs: scratch is the randomly initialised network of the same size and seed; or any MODEL."""
    options: dict[str, Option] = {}
    """Options of the command, such as {shots = "4,8,16", draws = 3}."""


class MonitorPlan(_Section):
    """A value that the monitors of every run measured at its last step."""

    name: str
    """How the study calls it."""
    path: str
    """Its path of keys in a row of monitors.jsonl, such as student.diversity.sa.js."""


class Endpoint(_Section):
    """The primary endpoint: a single difference, whose p is not corrected."""

    of: str
    """Name of a task or of a monitor."""
    first: str
    """A method or a baseline of the study."""
    second: str
    """Another one; the difference is first minus second."""
    subset: str = "100%"
    """The labels used, such as k=8 or 25%; ignored for a monitor."""


class Study(_Section):
    """A study: what is pretrained, what is measured, and which difference decides."""

    title: str
    """Heading of the page."""
    store: str = "store"
    """The prepared store, relative to the study's file."""
    methods: Annotated[list[str], Field(min_length=1)]
    """Method presets."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    """Seeds of the pretrainings, by which differences are paired."""
    sizes: Annotated[list[str], Field(min_length=1)] = ["tiny"]
    """Size presets."""
    set: list[str] = []
    """Settings of every pretraining, as key=value."""
    weights: Literal["auto", "teacher", "student"] = "auto"
    """Which weights of the runs the tasks use."""
    runs: dict[str, str] = {}
    """Finished runs to use instead of pretraining: "SIZE/METHOD/SEED" = folder, relative to the study's file."""
    tasks: list[TaskPlan] = []
    monitors: list[MonitorPlan] = []
    primary: Endpoint | None = None

    @model_validator(mode="after")
    def _check(self) -> Study:
        for kind, chosen in (("methods", self.methods), ("sizes", self.sizes)):
            if unknown := [name for name in chosen if name not in list_presets(kind)]:
                raise ValueError(f"{kind}: {unknown[0]!r} is not a preset; there are {', '.join(list_presets(kind))}")
        names = [task.name for task in self.tasks] + [monitor.name for monitor in self.monitors]
        if len(set(names)) < len(names):
            raise ValueError("two tasks or monitors have the same name")
        if self.primary is not None and self.primary.of not in names:
            raise ValueError(f"primary.of: there is no task or monitor {self.primary.of!r}")
        known = [*self.methods, *(name for task in self.tasks for name in task.baselines)]
        if self.primary is not None:
            for arm in (self.primary.first, self.primary.second):
                if arm not in known:
                    raise ValueError(f"primary: {arm!r} is neither a method nor a baseline of the study")
        return self


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command of a study. `models` maps each arm of a task to its name in the results."""

    name: str
    kind: Literal["pretrain", "task"]
    words: tuple[str, ...]
    folder: Path
    size: str
    seed: int
    arm: str = ""
    models: tuple[tuple[str, str], ...] = ()

    @property
    def command(self) -> str:
        """The command as typed in a shell."""
        return shlex.join(("dagman", *self.words))

    @property
    def finished(self) -> bool:
        """Whether its folder holds the complete result."""
        if self.kind == "task":
            return (self.folder / "metrics.json").is_file() and (self.folder / "report.html").is_file()
        try:
            run = Run(self.folder)
            return run.last_step >= run.settings.train.steps and run.encoder_folder.is_dir()
        except RunError:
            return False


def list_studies() -> list[str]:
    """List the names of the built-in studies."""
    return sorted(
        p.name.removesuffix(".toml") for p in (resources.files("dagman.study") / "studies").iterdir() if p.name.endswith(".toml")
    )


def read_study(source: str | Path) -> Study:
    """Read a study from its file, or a built-in one by name.

    Raises:
        SettingsError: There is no such file or name, it is not TOML, or a key is wrong; the message says what is expected.
    """
    path = Path(source)
    if path.suffix == ".toml" or path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError("the study cannot be read", where=path, do=f"Give a TOML file ({type(error).__name__})") from None
    elif str(source) in list_studies():
        text = (resources.files("dagman.study") / "studies" / f"{source}.toml").read_text(encoding="utf-8")
    else:
        do = f"Give a TOML file, or one of {', '.join(list_studies())}"
        raise SettingsError("there is no such study", where=source, do=do)
    try:
        return Study.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the study is not valid TOML: {error}", where=source) from None
    except ValidationError as error:
        raise _explain_error(error, source) from None


def _explain_error(error: ValidationError, source: str | Path) -> SettingsError:
    """Convert the first of pydantic's errors to one sentence."""
    first = error.errors()[0]
    key, do = ".".join(str(part) for part in first["loc"]), "See docs/guides/study.md"
    if first["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {"tasks": TaskPlan, "monitors": MonitorPlan, "primary": Endpoint}
        section = sections.get(key.partition(".")[0], Study)
        return SettingsError(f"{key}: unknown key", where=source, do=suggest_name(str(first["loc"][-1]), section.model_fields))
    if first["type"] == "missing":
        return SettingsError(f"{key} is missing", where=source, do=do)
    if first["type"] == "value_error":
        what = str(first["ctx"]["error"])
        return SettingsError(f"{key}: {what}" if key else what, where=source, do=do)
    return SettingsError(f"{key} = {first['input']!r}: should be {state_wanted(first)}", where=source, do=do)


def list_jobs(study: Study, base: str | Path, out: str | Path) -> list[Job]:
    """List every command of a study, pretrainings first; paths of the study are relative to `base`, results go to `out`."""
    base, out = Path(base), Path(out)
    runs = list_runs(study, base, out)
    jobs = [
        _plan_pretraining(study, base, folder, size, method, seed)
        for (size, method, seed), folder in runs.items()
        if f"{size}/{method}/{seed}" not in study.runs
    ]
    for task in study.tasks:
        for size in study.sizes:
            jobs += [_plan_task(study, task, base, out, size, seed, runs) for seed in study.seeds]
    return jobs


def list_runs(study: Study, base: str | Path, out: str | Path) -> dict[tuple[str, str, int], Path]:
    """Map size, method and seed to the folder of the run: a given one, or one that the study pretrains."""
    folders = {}
    for size in study.sizes:
        for seed in study.seeds:
            for method in study.methods:
                taken = study.runs.get(f"{size}/{method}/{seed}")
                folders[size, method, seed] = Path(base) / taken if taken else Path(out) / "runs" / f"{size}-{method}-{seed}"
    return folders


def _plan_pretraining(study: Study, base: Path, folder: Path, size: str, method: str, seed: int) -> Job:
    words = ["pretrain", str(base / study.store), "--out", str(folder), "--size", size, "--method", method, "--set", f"seed={seed}"]
    for assignment in study.set:
        words += ["--set", assignment]
    return Job(name=folder.name, kind="pretrain", words=tuple(words), folder=folder, size=size, seed=seed, arm=method)


def _plan_task(
    study: Study, task: TaskPlan, base: Path, out: Path, size: str, seed: int, runs: dict[tuple[str, str, int], Path]
) -> Job:
    arms: dict[str, tuple[str, str]] = {}
    student = " (student)" if study.weights == "student" else ""
    for method in study.methods:
        folder = runs[size, method, seed]
        arms[method] = (str(folder), f"{folder.resolve().name}{student}")
    for baseline in task.baselines:
        text = f"scratch:{size}:{seed}" if baseline == "scratch" else baseline
        arms[baseline] = (text, text)
    # Tasks compare the first model with the others.
    if study.primary is not None and study.primary.of == task.name:
        arms = {study.primary.first: arms[study.primary.first], **arms}
    slug = re.sub(r"[^a-z0-9]+", "-", task.name.lower()).strip("-")
    folder = out / "tasks" / f"{slug}-{size}-{seed}"
    words = [task.task, *(text for text, _ in arms.values()), str(base / task.table), "--out", str(folder)]
    if study.weights != "auto":
        words += ["--weights", study.weights]
    for key, value in task.options.items():
        words += _write_option(key, value)
    names = tuple((arm, name) for arm, (_, name) in arms.items())
    return Job(name=folder.name, kind="task", words=tuple(words), folder=folder, size=size, seed=seed, arm=task.name, models=names)


def _write_option(key: str, value: Option) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def describe_jobs(jobs: list[Job]) -> str:
    """Describe the jobs as JSON: name, kind, command, folder, and whether each is finished."""
    rows = [
        {"name": job.name, "kind": job.kind, "command": job.command, "folder": str(job.folder), "finished": job.finished}
        for job in jobs
    ]
    return json.dumps(rows, indent=2)
