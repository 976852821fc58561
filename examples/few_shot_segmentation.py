"""Segment organs from two labelled patients, with two encoders on identical splits; about ten seconds on a CPU core.

    python examples/few_shot_segmentation.py --out example [--encoder RUN]

To finish quickly, the encoders are much smaller than the size `tiny` and are trained for a few steps, so the scores mean nothing.
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
    parser.add_argument("--out", type=Path, default=Path("example"), help="folder for all output files")
    parser.add_argument("--encoder", help="a run or an encoder folder; default: a second random initialisation")
    parser.add_argument("--steps", type=int, default=10, help="number of training steps")
    arguments = parser.parse_args()

    cohort = write_cohort(arguments.out / "coarse-cohort", patients=6, seed=0, spacing=8.0)

    scratch = write_tiny_encoder(arguments.out / "scratch")
    encoder = arguments.encoder or write_tiny_encoder(arguments.out / "other", seed=1)

    # One row per structure: the scan, its label map, the value in that map, and the patient. Splits are by patient.
    data = read_labelled_scans(cohort.organs_table, labels="liver=5")
    models = [parse_model(str(encoder)), parse_model(str(scratch))]
    settings = SegmentationSettings(
        folds=2,
        shares=(),
        per_class=(2,),  # labelled patients used for training; `--shots 2` on the command line
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
