"""Segment organs from two labelled patients, with two encoders on identical splits: about ten seconds of a CPU core.

    python examples/few_shot_segmentation.py --out example [--encoder RUN]

The encoders are far below the size `tiny` and trained for a few steps, so that this takes no time: the numbers mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dagman.reports.tasks.comparison import write_comparison_report
from dagman.scans.phantom import write_cohort
from dagman.tables.labelled_scans import read_labelled_scans
from dagman.tasks.models import parse_model
from dagman.tasks.segment.segmentation import SegmentationSettings, segment_scans
from dagman.testing import write_tiny_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("example"), help="folder for everything that is written")
    parser.add_argument("--encoder", help="a run or an encoder folder; default: other fresh weights")
    parser.add_argument("--steps", type=int, default=10, help="steps of training")
    arguments = parser.parse_args()

    cohort = write_cohort(arguments.out / "coarse-cohort", patients=6, seed=0, spacing=8.0)

    fresh = write_tiny_encoder(arguments.out / "fresh")
    encoder = arguments.encoder or write_tiny_encoder(arguments.out / "other", seed=1)

    # One row a structure: the scan, its label map, the value in it, and the patient, by whom all splits are made.
    data = read_labelled_scans(cohort.organs_table, labels="liver=5")
    models = [parse_model(str(encoder)), parse_model(str(fresh))]
    settings = SegmentationSettings(
        folds=2,
        shares=(),
        per_class=(2,),  # labelled patients in training: `--shots 2` of the command
        steps=arguments.steps,
        side=32,
        spacing=8.0,
        measures=("dice",),
        keep=False,
        device="cpu",
    )
    results = segment_scans(models, data, arguments.out / "few", settings, on_part=print)

    for row in results.summary.measurements:
        interval = row.interval
        print(f"{row.model}, {row.subset}: {row.name} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})")
    print(f"page: {write_comparison_report(results)}")


if __name__ == "__main__":
    main()
