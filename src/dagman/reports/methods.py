"""Draft the methods section of a paper from the recorded settings of a run or an evaluation.

Constants are imported from the modules that use them, so that the text cannot disagree with the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagman.evaluation.results import Results
from dagman.evaluation.statistics import REFITTING
from dagman.records.counts import count_noun
from dagman.reports.names import state_kinds
from dagman.reports.page import Block, Text
from dagman.reports.provenance import name_software
from dagman.settings import Settings
from dagman.settings.tree import UNIT
from dagman.tasks.classify.classification import SMOOTHING
from dagman.tasks.outcome.cox import MIXING
from dagman.tasks.outcome.time_to_event import CLINICAL
from dagman.tasks.registry import find_task, load_part
from dagman.tasks.segment.training import FOREGROUND
from dagman.tasks.survival_models import COMPONENTS, TREES
from dagman.training.run import Run

TITLE = "Methods text"
PAPER = "Jiang, Rangnekar and Veeraraghavan, MIDL 2025"
_LEAD = "A draft for a methods section. Check it, and add what was done to the data before this command."


def quote_run(run: Run) -> list[Text]:
    """Describe how an encoder was pretrained: data, views, masking, teacher, losses, optimiser, software."""
    settings, inputs = run.settings, run.command.get("inputs", {})
    sentences = [*_state_views(settings, inputs.get("count")), *_state_method(settings), *_state_training(run)]
    return [Text(_LEAD), Text(" ".join(sentences))]


def quote_results(results: Results) -> list[Block]:
    """Describe how a task was evaluated: items, models, splits, subsets, intervals, comparisons, software."""
    task, settings = find_task(results.summary.task), results.command["settings"]
    described = load_part(task.methods)(results, settings) if task and task.methods else []
    sentences = [*described, *_state_splits(results, settings), *_state_statistics(results)]
    sentences.append(f"Seed {settings['seed']}; {name_software(results.command)}.")
    return [Text(_LEAD), Text(" ".join(sentences))]


def _state_views(settings: Settings, scans: int | None) -> list[str]:
    view, model = settings.view, settings.model
    data = f" on {count_noun(scans, 'scan')}" if scans else ""
    network = f"A 3D backbone `{model.backbone}`"
    if model.backbone == "swin":
        network = (
            f"A 3D Swin transformer (embedding {model.embed}, {_join(model.depths)} blocks and {_join(model.heads)} heads in four "
            f"stages, windows of {model.window} tokens)"
        )
    elif model.fixed_sizes:
        network = f"A 3D CNN `{model.backbone}`"
    elif model.backbone == "vit":
        network = (
            f"A 3D vision transformer ({sum(model.depths)} blocks of {model.embed} channels with {model.heads[0]} heads, patches "
            f"of {UNIT}^3 voxels, learned positions, a [CLS] token)"
        )
    return [
        f"{network} was pretrained without labels{data} by the method `{settings.method}` "
        f"as dagman implements it (DAGMaN: {PAPER}).",
        f"Scans were resampled to {view.spacing:g} mm; CT from {view.low:g} to {view.high:g} HU was scaled to 0 to 1. Each step "
        f"took pairs of overlapping crops of {view.side}^3 voxels ({view.side * view.spacing:g} mm).",
    ]


def _state_method(settings: Settings) -> list[str]:
    masking, teacher, weights = settings.masking, settings.teacher, settings.losses
    used = {name: getattr(weights, name) for name in ("amip", "ampd", "aitd", "gitd") if getattr(weights, name)}
    hints = f", of which the {masking.hints:.0%} most attended were left visible as hints" if masking.choice.gives_hints else ""
    lines = [
        f"Of the units of a crop {masking.ratio:.0%} were masked by `{masking.kind}`{hints}.",
        f"The loss was {' + '.join(f'{value:g} {name.upper()}' for name, value in used.items())}.",
    ]
    if set(used) - {"amip"}:
        noise = f" saw {1 - teacher.noise:.0%} of its input and" if teacher.noise else ""
        lines.append(
            f"The teacher{noise} was an exponential moving average of the student (momentum {_show(teacher.momentum)} to "
            f"{teacher.momentum_end:g}); its targets were centred by `{teacher.centering}`."
        )
    return lines


def _state_training(run: Run) -> list[str]:
    optim, train = run.settings.optim, run.settings.train
    done = f"{run.last_step} of {train.steps}" if run.last_step < train.steps else f"{train.steps}"
    lines = [
        f"Training took {done} steps of {train.batch} crops with AdamW (learning rate {_show(optim.lr)}, warm-up over "
        f"{optim.warmup:.0%} of the steps, then cosine decay to {optim.min_lr:g}; weight decay {_show(optim.weight_decay)}; "
        f"gradient norm clipped at {optim.clip:g})."
    ]
    if run.command:
        lines.append(f"Seed {run.settings.seed}; {name_software(run.command)}.")
    return lines


def state_classification(results: Results, settings: Mapping[str, Any]) -> list[str]:
    """Describe a classification: number of items, features, probes and fine-tuning."""
    extra, methods = results.summary.extra, _list_methods(results)
    counts = ", ".join(f"{count} `{name}`" for name, count in extra["counts"].items())
    lines = [f"{sum(extra['counts'].values())} items ({counts}) of {extra['patients']} patients were classified."]
    if extra.get("spacing"):
        lines.append(f"Each was cropped from its scan at a voxel size of {extra['spacing']:.3g} mm.")
    if {"linear", "knn"} & methods:
        lines.append(_POOLED)
    if "linear" in methods:
        lines.append(f"The linear probe is a logistic regression with an L2 penalty on standardised features; {_CHOSEN}.")
    if "knn" in methods:
        lines.append(
            "k-NN weights the 20 nearest training items by exp(cosine / 0.07) of standardised features (Wu et al., CVPR 2018)."
        )
    if "finetune" in methods:
        fit = "the linear probe"
        lines.append(
            _state_finetuning(settings["finetuning"], f"cross-entropy with class weights and label smoothing of {SMOOTHING:g}", fit)
        )
    return lines


def state_regression(results: Results, settings: Mapping[str, Any]) -> list[str]:
    """Describe a regression: items, features, probe, fine-tuning and measures."""
    extra, methods, rows = results.summary.extra, _list_methods(results), results.predictions
    low, high = extra["range"]
    lines = [
        f"The number `{settings['label']}` ({low:g} to {high:g}, mean {extra['mean']:.3g}, standard deviation "
        f"{extra['deviation']:.3g}) of {rows['item'].nunique()} items of {rows['patient'].nunique()} patients was predicted."
    ]
    if extra.get("spacing"):
        lines.append(f"Each was cropped from its scan at a voxel size of {extra['spacing']:.3g} mm.")
    if "ridge" in methods:
        chosen = _CHOSEN.replace("log loss", "squared error")
        lines.append(f"{_POOLED} The probe is a ridge regression on standardised features; {chosen}.")
    if "finetune" in methods:
        lines.append(_state_finetuning(settings["finetuning"], "the squared error of the standardised number", "the ridge probe"))
    lines.append(
        "R² and errors were computed over all test items and averaged over repeats; Spearman's correlation was averaged over folds."
    )
    return lines


def _state_response(results: Results) -> str:
    extra = results.summary.extra
    counts = ", ".join(f"{count} `{name}`" for name, count in extra["counts"].items())
    beside = "; with clinical columns, only the penalty" if _has_clinical(results) else ""
    reduced = f", and, with clinical columns, reduced to at most {COMPONENTS} principal components"
    return (
        f"The response of {extra['patients']} patients ({counts}) was predicted. {_POOLED} They were averaged over the items of a "
        f"patient{reduced if _has_clinical(results) else ''}. {_state_clinical(results)}The model is a logistic regression with an "
        f"L2 penalty; {_CHOSEN}{beside}."
    )


def state_outcome(results: Results, settings: Mapping[str, Any]) -> list[str]:
    """Describe the prediction of a response, or of time and event."""
    if results.summary.task == "response":
        return [_state_response(results)]
    extra, methods = results.summary.extra, _list_methods(results)
    lines = [
        f"Time and event of {extra['patients']} patients ({extra['events']} events) were predicted.",
        f"{_POOLED} {_REDUCED} {_state_clinical(results)}".rstrip(),
    ]
    if "cox" in methods:
        lines.append(
            f"Cox proportional hazards models were fitted with an elastic net penalty (L1 ratio {MIXING:g}), whose strength "
            f"was chosen in an inner cross-validation by patient."
        )
    if "forest" in methods:
        lines.append(f"Random survival forests have {TREES} trees.")
    if "finetune" in methods:
        lines.append(_state_finetuning(settings["finetuning"], "Cox's partial likelihood", "the fit to frozen features"))
    lines.append(
        "Risk groups were split at the median risk of the training patients. Concordance (Harrell, Uno) was computed over "
        "pairs within a fold."
    )
    return lines


def state_segmentation(results: Results, settings: Mapping[str, Any]) -> list[str]:
    """Describe a segmentation: decoder, training, sliding window and measures."""
    extra, classes = results.summary.extra, results.summary.classes
    steps = f"{settings['steps']} steps" if settings["steps"] else "the default number of steps"
    rate = f"learning rate {settings['rate']:g}" if settings["rate"] else "the default learning rate"
    mirror = ", and averaged over mirrored windows" if settings["mirror"] else ""
    return [
        f"{', '.join(f'`{name}`' for name in classes)} were segmented in {extra['scans']} scans of {extra['patients']} patients by "
        "the encoder with a decoder shaped like SwinUNETR's, trained from scratch (with its last bias initialised to the log "
        "class frequencies of the training voxels) with Dice and cross-entropy loss for "
        f"{steps} of {settings['batch']} crops ({FOREGROUND:.0%} of them around a structure) with AdamW ({rate}, layer-wise "
        f"decay {settings['layer_decay']:g}, for every model).",
        f"Whole scans were predicted by a sliding window with 50 % overlap and Gaussian weighting{mirror}, and scored on the "
        f"masks' own grids; "
        f"surface Dice at a tolerance of {extra['tolerance_mm']:g} mm.",
    ]


def state_clustering(results: Results, settings: Mapping[str, Any]) -> list[str]:
    """Describe a clustering: features, clusters and map."""
    extra, rows = results.summary.extra, results.predictions
    structures = len(rows) // rows["model"].nunique()
    umap = f", and mapped by UMAP ({extra.get('neighbours', settings['neighbours'])} neighbours)" if extra["map"] == "umap" else ""
    return [
        f"{structures} structures of {extra['patients']} patients were described without fine-tuning. {_POOLED} They were "
        f"standardised, reduced to at most {COMPONENTS} principal components, clustered by k-means and HDBSCAN{umap}. Labels "
        f"were used only for evaluation."
    ]


def _state_finetuning(finetuning: Mapping[str, Any], loss: str, start: str) -> str:
    return (
        f"Fine-tuning began at {start} and ran for at most {count_noun(finetuning['epochs'], 'epoch')} of AdamW (learning rate "
        f"{finetuning['rate']:g}, layer-wise decay {finetuning['layer_decay']:g}, for every model) on "
        f"{loss}. The epoch with the lowest validation loss (on the table's own validation set, or on an inner split by "
        f"patient; including epoch 0) was kept; after {count_noun(finetuning['patience'], 'epoch')} without improvement "
        f"training stopped, but not in the first half."
    )


def _state_clinical(results: Results) -> str:
    if not _has_clinical(results):
        return ""
    filled = "with missing values imputed by the training patients' median or mode"
    return f"Clinical columns were evaluated alone and combined with the image, {filled}. "


def _has_clinical(results: Results) -> bool:
    return any(row.model == CLINICAL for row in results.summary.measurements)


def _state_splits(results: Results, settings: Mapping[str, Any]) -> list[str]:
    if not results.is_split:
        return []
    splits = results.splits
    folds, repeats = splits["fold"].nunique(), splits["repeat"].nunique()
    split = "The predefined split of the table was used" if folds == 1 else f"{folds}-fold cross-validation was split by patient"
    if repeats > 1:
        split += f" and repeated {repeats} times"
    subsets = list(dict.fromkeys(row.subset for row in results.summary.measurements))
    if len(subsets) > 1:
        draws = f", {settings['draws']} times each" if settings["draws"] > 1 else ""
        split += f"; smaller training sets ({', '.join(subsets[:-1])} of the labels) were drawn by patient{draws}, nested"
    return [f"{split}."]


def _state_statistics(results: Results) -> list[str]:
    summary = results.summary
    hows = [row.interval.how for row in summary.measurements]
    resampled = [how for how in hows if "bootstrap" in how or how.startswith("DeLong")]
    lines = [f"95 % intervals: {state_kinds(summary.measurements)}."] if resampled else []
    if hows and not resampled:
        lines.append(f"95 % intervals: none ({hows[0].removeprefix('no interval: ')}).")
    if summary.comparisons:
        named = " and ".join(_distinct([row.difference.how for row in summary.comparisons]))
        if any(REFITTING in row.difference.how for row in summary.comparisons):
            named += f", {REFITTING}"
        count = len(summary.comparisons)
        several = f"{count} paired differences were tested ({named}); p was corrected by Holm."
        lines.append(several if count > 1 else f"One paired difference was tested ({named}).")
    return lines


def _list_methods(results: Results) -> set[str]:
    return {row.method for row in results.summary.measurements}


def _distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(text.partition(",")[0] if text.startswith("paired") else text for text in texts))


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


_POOLED = (
    "The features of a network are the mean, standard deviation and maximum of each of its four stages within the structure, "
    "or over the whole scan if there is none."
)
_CHOSEN = (
    "the penalty, and how many of the stages of a network it reads (the first one, two, three or all four), were chosen "
    "jointly by log loss in an inner cross-validation by patient"
)
_REDUCED = (
    f"They were averaged over the items of a patient, standardised, and reduced to at most {COMPONENTS} principal components of "
    "the training patients."
)
