"""The text of docs/results.md from the folders of results: tables with intervals, paired differences, commands, times.

The hand-written end of the page, from the heading BY_HAND on, is kept. For a part that WORK lacks, the page shows the command
without figures, because all figures of a page must come from one version of the code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dagman.evaluation.results import Comparison, Measurement, Results
from dagman.records.files import write_text
from dagman.training.run import Run

PAGE = Path(__file__).parents[1] / "docs/results.md"
BY_HAND = "## What would have to change"
WITH_CLINICAL = " + clinical"
RUNS = {"pretrained": "scratch:tiny", "pretrained-small": "scratch:small"}
"""Each run, with the randomly initialised network of its size."""
PROJECTORS = ("ampd", "aitd", "gitd")
TITLES = {
    "malignancy": "1. Nodule malignancy: linear probe (`lidc-nodules`, 227 nodules, 172 patients, 57 % malignant)",
    "malignancy-small": "1b. The same with the `small` encoder",
    "malignancy-finetuned": "2. Nodule malignancy: fine-tuning, crops of 32 mm at 1 mm",
    "malignancy-finetuned-small": "2b. The same with the `small` encoder",
    "metastasis": "3. Lung metastasis of soft-tissue sarcoma (`sarcoma-ct`, 43 patients, 16 with metastasis)",
    "progression": "4. Time to progression (`sarcoma-ct`, 43 patients, 22 events)",
    "survival": "5. Survival (`sarcoma-ct`, 43 patients, 12 deaths)",
    "tumours": "6. Tumour segmentation (`sarcoma-ct`, 43 patients, 5 folds)",
    "structures": "7. Clustering of anatomical structures (`organs`, two scans)",
    "organs": "8. Organ segmentation: a smoke test (`organs`)",
}
CLASSES = ("auc", "balanced_accuracy", "brier")
TIMES = ("harrell_c", "uno_c", "dynamic_auc", "integrated_brier")
MEASURES = {
    **dict.fromkeys(
        ("malignancy", "malignancy-small", "malignancy-finetuned", "malignancy-finetuned-small", "metastasis"), CLASSES
    ),
    **dict.fromkeys(("progression", "survival"), TIMES),
    "tumours": ("dice", "hd95_mm", "nsd", "lesion_sensitivity", "volume_bias_ml"),
    "structures": ("silhouette", "neighbour_accuracy", "nmi", "ari", "purity", "intra_distance", "inter_distance"),
    "organs": (),
}
INTRO = """# Results on real data

Made by `python benchmarks/results.py ../shared/data --work out/results`. Every number comes from the command shown above it.
The scans are public (LIDC-IDRI, Soft-tissue-Sarcoma, TotalSegmentator's examples).

**Read this first.** The encoders are small and were pretrained for minutes:
{encoders}

These tables show that the pipeline works from end to end, and how useful such encoders are. They do not show what the method can
do at its published size. Pretraining used the scans of tasks 3 to 8, without labels. It did not use the nodule crops (30 mm), which
are smaller than a view, but it did use the whole scan of one of their 172 patients (LIDC-IDRI-0314).

Intervals are 95 % intervals over patients, of scores averaged over repeats, and are widened for refitting in each fold
(decision 0022). AUCs use DeLong's method, other measures the bootstrap. Differences are paired on the same items, and p is
corrected by Holm's method for all comparisons of its table. `scratch:tiny` is the network of `pretrained`, randomly
initialised{also}. Times are those of one core while other jobs were running.
"""


def write_page(folder: Path, commands: Mapping[str, str]) -> None:
    """Write docs/results.md from the parts that are there; a part that has not been run is marked "Not run"."""
    runs = [Run(folder / name) for name in RUNS if (folder / name).is_dir()]
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    also = "; `scratch:small` is that of `pretrained-small`" if len(runs) > 1 else ""
    parts = [INTRO.format(encoders="\n".join(map(_describe_encoder, runs)), also=also).rstrip()]
    parts += ["\n\n".join(_describe_pretraining(run)) for run in runs]
    for name, title in TITLES.items():
        if name not in commands:
            continue
        head = f"## {title}\n\n    {commands[name]}"
        if not (folder / name / "metrics.json").is_file():
            parts.append(f"{head}\n\nNot run.")
            continue
        results = Results(folder / name)
        body = _describe_organs(folder, results) if name == "organs" else _describe_task(results, MEASURES[name])
        parts.append("\n\n".join([head, _format_time(folder, name), *body]))
    by_hand = before.partition(BY_HAND)[2] or "\n"
    write_text(PAGE, "\n\n".join([*parts, BY_HAND]) + by_hand)


def _describe_encoder(run: Run) -> str:
    """How much data it saw, compared with the paper's encoder: 800 epochs of pairs of views of 10,412 CTs."""
    settings = run.settings
    scans = len(json.loads((run.encoder_folder / "config.json").read_text())["scans_seen"])
    ratio = 800 * 10_412 * 2 / (run.last_step * settings.train.batch)
    return (
        f"- `{run.path.name}`: size `{settings.size}`, {run.last_step:,} steps of {settings.train.batch} views, {scans} CTs; "
        f"the paper's encoder saw {ratio:,.0f} times as many views."
    )


def _describe_pretraining(run: Run) -> list[str]:
    settings = run.settings
    total = sum(row["seconds"] for row in run.timings)
    device = next(line.split(maxsplit=2)[2] for line in run.choices if line.startswith("device "))
    device = "one CPU core" if "no CUDA device" in device else device.partition(",")[0]
    waiting = sum(r["waiting_share"] * r["seconds"] for r in run.timings) / total
    warnings = [f"- Warning at step {w['step']}: {w['text']}" for w in run.warnings]
    return [
        f"## Pretraining: `{run.path.name}`",
        "    dagman prepare {chest-dicom,lidc-nodules,organs,other-ct,sarcoma-ct,dicom-quirks} --out store\n"
        f"    dagman pretrain store --out {run.path.name} --size {settings.size} --modality ct "
        f"--set train.steps={settings.train.steps}",
        f"{run.last_step:,} {_of(settings.train.steps, run.last_step)}steps took {total / 60:.0f} minutes on {device}: "
        f"{run.last_step / total:.1f} steps per second, at most {max(row['memory_gib'] for row in run.timings):.1f} GiB, "
        f"{100 * waiting:.1f} % of the time waiting for data." + ("" if warnings else " No monitor raised a warning."),
        *(["\n".join(warnings)] if warnings else []),
        _tabulate_monitors(run),
    ]


def _of(asked: int, done: int) -> str:
    return f"of {asked:,} " if done < asked else ""


def _tabulate_monitors(run: Run) -> str:
    rows = list(run.monitors)
    chosen = [rows[round(k * (len(rows) - 1) / 4)] for k in range(5)]
    head = [
        "step",
        "AMIP / best trivial baseline",
        *(f"{name.upper()} H / MI / gain" for name in PROJECTORS),
        "attention entropy / ln N",
    ]
    body = []
    for row in chosen:
        measured = [row["projectors"][name] for name in PROJECTORS]
        cells = [f"{one['H']:.2f} / {one['MI']:.2f} / {one['gain']:+.2f}" for one in measured]
        body.append([str(row["step"]), f"{row['reconstruction']['ratio']:.2f}", *cells, f"{row['attention']['entropy']:.4f}"])
    return _tabulate(head, body)


def _describe_task(results: Results, names: Sequence[str]) -> list[str]:
    found = [m for m in results.summary.measurements if m.name in names]
    rows: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for one in found:
        rows.setdefault((one.method, one.subset, one.model), {})[one.name] = one
    shown = [name for name in names if any(name in row for row in rows.values())]
    table = _tabulate(
        ["method", "labels", "model", *(name.replace("_", " ") for name in shown)],
        [[*key, *(_format(row[name]) if name in row else "" for name in shown)] for key, row in rows.items()],
    )
    text = [table]
    compared = [c for c in results.summary.comparisons if _is_shown(c)]
    if compared:
        text += [
            "Differences (first minus second) that involve a pretrained encoder. Holm's correction also counts those not shown.",
            _tabulate(
                ["method", "labels", "measure", "first", "second", "difference", "p", "p (Holm)"],
                [_format_difference(c) for c in compared],
            ),
        ]
    notes = [note.text for note in results.summary.notes if len(note.text) < 400]
    return [*text, "\n".join(f"- {note}" for note in notes)]


def _is_shown(c: Comparison) -> bool:
    """Whether a pretrained encoder is compared with a model of the same inputs; of scratch networks, only the one of its size."""
    first, second = c.first.removesuffix(WITH_CLINICAL), c.second.removesuffix(WITH_CLINICAL)
    alike = c.first.endswith(WITH_CLINICAL) == c.second.endswith(WITH_CLINICAL)
    pair = {first, second}
    strangers = any(run in pair and pair & (set(RUNS.values()) - {fresh}) for run, fresh in RUNS.items())
    return bool(pair & set(RUNS)) and not strangers and (alike or first == second or c.second == "clinical")


def _describe_organs(folder: Path, results: Results) -> list[str]:
    scores = json.loads((folder / "organs-dice.json").read_text())
    held = {m.name: m for m in results.summary.measurements if m.name.startswith("dice:aorta")}
    text = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in scores.items())
    aorta = next(iter(held.values())).interval.value if held else math.nan
    return [
        "Dice on its own training scan, the only one with these organs (the labels are TotalSegmentator's, not a reader's): "
        f"{text}. Dice of the aorta of the other patient, in another field of view: {aorta:.2f}. These numbers are not estimates "
        "of performance. They show that the command trains, keeps a model, and applies it on the scan's own grid."
    ]


def _format(one: Measurement) -> str:
    interval = one.interval
    digits: Callable[[float], str] = (lambda v: f"{v:.1f}") if one.name.endswith(("_mm", "_ml")) else (lambda v: f"{v:.3f}")
    if interval.value is None or not math.isfinite(interval.value):
        return "–"
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return digits(interval.value)
    return f"{digits(interval.value)} ({digits(interval.low)} to {digits(interval.high)})"


def _format_difference(c: Comparison) -> list[str]:
    d = c.difference
    return [
        c.method,
        c.subset,
        c.name.replace("_", " "),
        c.first,
        c.second,
        f"{d.value:+.3f}" + (f" ({d.low:+.3f} to {d.high:+.3f})" if math.isfinite(d.low) else ""),
        f"{d.p:.3f}" if math.isfinite(d.p) else "–",
        f"{c.corrected:.3f}" if math.isfinite(c.corrected) else "–",
    ]


def _format_time(folder: Path, name: str) -> str:
    seconds = json.loads((folder / "seconds" / f"{name}.json").read_text())
    return f"Took {seconds / 60:.0f} minutes." if seconds >= 90 else f"Took {seconds:.0f} seconds."


def _tabulate(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(head), ["---"] * len(head), *map(list, rows)])
