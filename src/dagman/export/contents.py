"""Describe encoders, runs, stores, models and features: contents, provenance, intended use, inputs and outputs.

The descriptions are used by `dagman info` and in model cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dagman.encoder.dense import DenseStore, open_dense
from dagman.encoder.encoder import Encoder
from dagman.encoder.feature_file import summarise_features
from dagman.encoder.loading import find_folder, load_encoder
from dagman.errors import DagmanError, TaskError
from dagman.export.preprocessing import describe_preprocessing, state_preprocessing
from dagman.records.counts import count_noun, list_some
from dagman.records.names import suggest_path
from dagman.store.manifest import Store
from dagman.tasks.registry import TASKS, list_keeping
from dagman.tasks.segment.model import SegmentationModel
from dagman.training.monitoring.health import judge_run
from dagman.training.run import Run

RESEARCH = "Research on {modalities} scans at about {spacing:g} mm: features, fine-tuning, segmentation, retrieval."
_DESCRIBED = "a run, an encoder folder, a store, or a model of a task"
_MARKS = ("settings.toml", "store.json")
"""Files by which a folder is recognised as a run or a store."""
NOT_FOR = (
    "Diagnosis, treatment, or any decision about a patient: it has not been validated for clinical use.",
    "Evaluation on scans it was trained on: their content hashes are in config.json (scans_seen).",
)

FEATURES_NOT_FOR = (NOT_FOR[0], "Evaluation on rows that the encoder saw in pretraining (column seen_in_pretraining).")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A description; the values of all mappings are plain, for JSON.

    Attributes:
        kind: encoder, run, store, model, features or token grids.
        what: One sentence.
        made_of: Parts and sizes.
        made_from: Data, method, seed, version.
        used_for: Intended uses.
        not_for: Uses that are out of scope.
        contract: Inputs and outputs.
        notes: Verdicts and warnings, in sentences.
    """

    kind: str
    what: str
    made_of: Mapping[str, Any] = field(default_factory=dict)
    made_from: Mapping[str, Any] = field(default_factory=dict)
    used_for: tuple[str, ...] = ()
    not_for: tuple[str, ...] = ()
    contract: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_values(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return asdict(self)


def describe_path(path: str, *, weights: str = "auto") -> Contents:
    """Describe what is stored at a path, or the encoder of a given name.

    Raises:
        DagmanError: It is nothing that dagman writes, or it is damaged.
    """
    folder = Path(path)
    if (folder / "dense.json").is_file():
        return describe_dense(open_dense(folder))
    if folder.is_file() and folder.suffix.lower() in (".parquet", ".pq", ".csv"):
        return describe_features(folder)
    if (folder / "store.json").is_file():
        return describe_store(Store(folder))
    if (folder / "settings.toml").is_file():
        return describe_run(Run(folder), weights=weights)
    model = _find_model(folder)
    if model is not None:
        return describe_model(model)
    if (folder / "metrics.json").is_file():
        what = f"holds results without a model; {list_keeping()} save one"
        raise TaskError(what, where=folder, do="Open its report.html, or give a model, a run, a store or an encoder")
    if ":" not in path:
        _refuse_other(folder)
    return describe_encoder(load_encoder(path, device="cpu", weights=weights))


def describe_encoder(encoder: Encoder) -> Contents:
    """Describe an encoder."""
    config, network = encoder.config, encoder.network
    parameters = sum(value.numel() for value in network.parameters())
    made_of = {
        "backbone": config.backbone,
        "size": config.size,
        "parameters": parameters,
        "embed": config.shape.embed,
        "depths": list(config.shape.depths),
        "heads": list(config.shape.heads),
        "window": config.shape.window if "swin" in config.backbone else None,
        "positions": encoder.describe_positions() or None,
        "widths": list(network.encoder.widths),
        "strides": list(network.encoder.strides),
        "semantic_attention": None if config.semantic is None else asdict(config.semantic),
        "digest": encoder.digest,
    }
    made_from = {
        "method": config.method,
        "steps": config.step,
        "seed": config.seed,
        "weights": config.weights,
        "first_weights": config.first_weights,
        "scans_seen": len(config.scans_seen),
        "imported": None if encoder.imported is None else str(encoder.imported),
        "pretrained_on": [str(cohort) for cohort in config.cohorts] or None,
    }
    notes: tuple[str, ...] = ("Its weights are random: it has not been trained.",) if config.fresh else ()
    if config.first_weights is not None and config.first_weights > 0.05:
        notes += (f"{config.first_weights:.0%} of the teacher's initial random weights are left in it.",)
    gives = {f"x{stage}": [width, stride] for stage, (width, stride) in enumerate(_list_maps(encoder), start=1)}
    use = RESEARCH.format(modalities=" and ".join(config.modalities), spacing=config.spacing)
    return Contents(
        kind="encoder",
        what=encoder.describe(),
        made_of={key: value for key, value in made_of.items() if value is not None},
        made_from={key: value for key, value in made_from.items() if value is not None},
        used_for=(use,),
        not_for=NOT_FOR,
        contract={"preprocessing": describe_preprocessing(encoder), "maps (channels, stride in voxels)": gives},
        notes=notes,
    )


def describe_run(run: Run, *, weights: str = "auto") -> Contents:
    """Describe a pretraining run and, if it has been exported, its encoder."""
    settings, command = run.settings, run.command
    inputs = command.get("inputs", {})
    try:
        inner: Contents | None = describe_encoder(load_encoder(run.path, device="cpu", weights=weights))
    except DagmanError as error:
        if (run.path / "encoder").is_dir():
            raise
        inner, missing = None, (str(error),)
    made_from = {
        "method": settings.method,
        "size": settings.size,
        "steps": f"{run.last_step} of {settings.train.steps}",
        "seed": settings.seed,
        "scans": inputs.get("count"),
        "store": inputs.get("store"),
        "data_digest": inputs.get("scans"),
        "dagman": command.get("dagman"),
        "written": command.get("written"),
    }
    verdicts = tuple(f"[{verdict.light}] {verdict.plain}" for verdict in judge_run(run))
    return Contents(
        kind="run",
        what=f"A pretraining run of the method {settings.method}, {run.last_step} of {settings.train.steps} steps",
        made_of=inner.made_of if inner else {},
        made_from={key: value for key, value in made_from.items() if value is not None} | ({} if inner is None else _share(inner)),
        used_for=inner.used_for if inner else ("Continuing it: repeat its command.",),
        not_for=NOT_FOR,
        contract=inner.contract if inner else {},
        notes=verdicts + (inner.notes if inner else missing),
    )


def describe_store(store: Store) -> Contents:
    """Describe a store of prepared scans."""
    rows = store.rows
    modalities = sorted({row.modality for row in rows})
    return Contents(
        kind="store",
        what=f"A store of {count_noun(len(rows), 'prepared scan')} at {store.preparation.spacing:g} mm",
        made_of={
            "scans": len(rows),
            "patients": len({row.patient for row in rows}),
            "modalities": {name: sum(row.modality == name for row in rows) for name in modalities},
            "bytes": sum(row.size for row in rows),
        },
        made_from=_read_origin(store.path),
        used_for=("Pretraining (dagman pretrain), and tasks whose tables name its scans by id.",),
        not_for=("Publication: it contains patients' images. Names are pseudonyms, made with the key whose fingerprint it holds.",),
        contract={key: value for key, value in store.info.items() if key != "format"},
    )


def describe_dense(store: DenseStore) -> Contents:
    """Describe a folder of token grids."""
    info = store.info
    stages = zip(info["stages"], info["channels"], info["strides"], info["token_mm"], strict=True)
    scans = {row["maps"] for row in store.rows}
    return Contents(
        kind="token grids",
        what=f"Token grids of {count_noun(len(store), 'scan')} by the {info['encoder']['what']}",
        made_of={
            "scans": len(store),
            "patients": len({row["patient"] for row in store.rows}),
            "scans_seen_in_pretraining": sum(row["seen_in_pretraining"] == "True" for row in store.rows),
            "bytes": sum(file.stat().st_size for maps in scans for file in (store.path / maps).glob("*.b2nd")),
        },
        made_from={**{f"encoder_{key}": value for key, value in info["encoder"].items()}, **_read_origin(store.path)},
        used_for=("Research: features of any region, read with dagman.open_dense, or with blosc2 only.",),
        not_for=FEATURES_NOT_FOR,
        contract={
            "axes": f"{info['axes']}, {info['orientation']}, {info['dtype']}",
            "maps (channels, stride in voxels, mm)": {f"x{stage}": values for stage, *values in stages},
            "joins by": "dense.csv: id, row, scan, patient, content_hash",
        },
    )


def describe_features(path: Path) -> Contents:
    """Describe a file of features.

    Raises:
        TaskError: The table was not written by `dagman embed`.
    """
    beside = path.with_name(f"{path.name}.command.json")
    command = _read_json(beside) if beside.is_file() else {}
    counts: dict[str, Any] = {}
    settings = command.get("settings", {})
    if path.suffix.lower() != ".csv":
        provenance, counts = summarise_features(path)
        made = {f"encoder_{key}": value for key, value in provenance["encoder"].items()} | {"dagman": provenance["dagman"]}
        settings = provenance["settings"]
    elif command.get("command") == "embed":
        inputs, outcome = command.get("inputs", {}), command.get("outcome", {})
        counts = {"rows": outcome.get("written"), "features": outcome.get("columns")}
        made = {
            "encoder_source": inputs.get("encoder"),
            "encoder_digest": inputs.get("encoder_digest"),
            "dagman": command["dagman"],
        }
    else:
        what = f"is a table that dagman embed did not write: there is no {beside.name} next to it"
        raise TaskError(what, where=path, do="Give an encoder, a run, a store, a model, or what dagman embed wrote")
    by_label = "label_map" in settings
    return Contents(
        kind="features",
        what=f"Features of {count_noun(counts['rows'] or 0, 'label' if by_label else 'item')}, {counts['features']} each",
        made_of=counts,
        made_from={**made, "written": command.get("written")} if command else made,
        used_for=("Research: a table with one row per item, for your own statistics.",),
        not_for=FEATURES_NOT_FOR,
        contract={**settings, "joins by": "id, scan, patient, label_value" + (", row" if by_label else "")},
    )


def describe_model(folder: Path) -> Contents:
    """Describe a model that was saved by a task."""
    task = next(task for task in TASKS.values() if task.model is not None and (folder / task.model.file).is_file())
    values = _read_json(folder / task.model.file) if task.model else {}
    contract = values.get("contract") or {}
    made_of: dict[str, Any] = {
        key: values[key]
        for key in ("classes", "label", "range", "method", "model", "source", "mirrored", "penalty")
        if key in values
    }
    if "structures" in values:
        made_of["structures"] = {structure["name"]: structure["values"] for structure in values["structures"]}
    trained = {"items": contract.get("items"), "patients": contract.get("patients")}
    trained["scans"] = len(contract.get("scans") or values.get("trained_on") or [])
    given = {key: contract[key] for key in ("units", "clinical", "labels", "spacing", "modalities") if contract.get(key)}
    given |= {key: values[key] for key in ("crop_mm", "crop_spacing", "times") if values.get(key) is not None}
    notes: tuple[str, ...] = ()
    if (folder / "encoder").is_dir():
        encoder = load_encoder(folder / "encoder", device="cpu")
        made_of["encoder"] = encoder.describe()
        given["preprocessing"] = state_preprocessing(encoder)
    if "contract" in values and not contract:
        notes = ("It was saved by an earlier version of dagman, without a record of its training data.",)
    return Contents(
        kind="model",
        what=f"A model of dagman {task.name}" + (f" for {list_some(made_of['structures'], 8)}" if "structures" in made_of else ""),
        made_of=made_of,
        made_from={key: value for key, value in trained.items() if value is not None} | _read_origin(folder.parent),
        used_for=("Research: dagman predict applies it to scans like those it was trained on.",),
        not_for=(NOT_FOR[0], "Evaluation on the scans it was trained on."),
        contract=given,
        notes=notes,
    )


def describe_segmentation(model: SegmentationModel) -> Contents:
    """Describe a segmentation model in memory, like `describe_model` for its folder as far as the information is available."""
    contract, inner = model.contract, describe_encoder(model.encoder)
    trained = {
        "items": contract and contract.items,
        "patients": contract and contract.patients,
        "scans": len(contract.scans if contract else ()),
    }
    return replace(
        inner,
        kind="model",
        what=f"A model of dagman segment for {list_some([structure.name for structure in model.structures], 8)}",
        made_of=dict(inner.made_of) | {"structures": {structure.name: list(structure.values) for structure in model.structures}},
        made_from=dict(inner.made_from) | {key: value for key, value in trained.items() if value},
        not_for=(NOT_FOR[0], "Evaluation on the scans it was trained on."),
    )


def _list_maps(encoder: Encoder) -> list[tuple[int, int]]:
    backbone = encoder.network.encoder
    return list(zip(backbone.widths, backbone.strides, strict=True))


def _share(inner: Contents) -> dict[str, Any]:
    return {key: inner.made_from[key] for key in ("weights", "first_weights", "scans_seen") if key in inner.made_from}


def _find_model(folder: Path) -> Path | None:
    files = [task.model.file for task in TASKS.values() if task.model is not None]
    return next((path for path in (folder, folder / "model") if any((path / file).is_file() for file in files)), None)


def _refuse_other(folder: Path) -> None:
    """Raise DagmanError if a path cannot be described; the message lists runs and stores in its subfolders."""
    if not folder.exists():
        raise DagmanError("does not exist", where=folder, do=suggest_path(folder, f"Give {_DESCRIBED}, or scratch:tiny"))
    if (folder.is_dir() and (folder / "config.json").exists()) or (folder / "encoder").is_dir():
        return
    below = sorted(path.parent for pattern in ("*", "*/*") for name in _MARKS for path in folder.glob(f"{pattern}/{name}"))
    do = f"Below it: {list_some(below, 5)}" if below else f"Give {_DESCRIBED}"
    raise DagmanError(f"is not {_DESCRIBED}", where=folder, do=do)


def _read_origin(folder: Path) -> dict[str, Any]:
    """Read the command that wrote a folder, the version of dagman and the date, as far as they are recorded."""
    if not (folder / "command.json").is_file():
        return {}
    values = _read_json(folder / "command.json")
    return {key: values[key] for key in ("command", "dagman", "written") if values.get(key)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TaskError(f"is damaged ({error})", where=path, do="Repeat the command that wrote it") from None


def find_run(encoder: Encoder) -> Run | None:
    """Find the run from which an encoder was loaded, from the run itself or its encoder folder; None if there is none."""
    source = Path(encoder.source)
    if not source.is_dir():
        return None
    for folder in (source, find_folder(source).parent):
        if (folder / "settings.toml").is_file():
            return Run(folder)
    return None
