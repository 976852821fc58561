"""Pretrain an encoder on the built-in cohort, load it, and embed a scan and one of its organs; about ten seconds on a CPU core.

    python examples/pretrain_and_embed.py --out example

To train in earnest, replace `write_cohort` with a folder of your own scans, and remove `TINY_SETTINGS` and the spacing: they make
the network much smaller than the size `tiny`, so that the example finishes quickly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import dagman
from dagman.reports.run.run_page import write_run_report
from dagman.scans.phantom import write_cohort
from dagman.store.preparation import Preparation
from dagman.testing import TINY_SETTINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("example"), help="folder for all output files")
    parser.add_argument("--steps", type=int, default=20, help="number of pretraining steps")
    arguments = parser.parse_args()
    out = arguments.out

    # Six synthetic CTs at 5 mm, with tables that list their organs and nodules.
    cohort = write_cohort(out / "cohort", patients=6, seed=0, spacing=5.0)

    # A store holds scans in the form that training reads: at one spacing, and cropped to the body.
    store = dagman.prepare(cohort.scans, out / "store", Preparation(spacing=4.0))
    print(f"{store.kept + store.already} scans in the store")

    # If the script is run again, the run resumes, or does nothing if it is complete.
    settings = [*TINY_SETTINGS, f"train.steps={arguments.steps}"]
    run = dagman.pretrain(store.path, out / "run", size="tiny", assignments=settings)
    print(f"pretrained {run.last_step} steps; page: {write_run_report(run)}")

    encoder = dagman.load(run.path)
    organs = pd.read_csv(cohort.organs_table)
    row = organs.iloc[0]
    scan, mask = (cohort.folder / row[name] for name in ("scan", "mask"))

    whole = encoder.embed(scan)
    print(f"the whole scan: {whole.values.shape[1]} features, {whole.columns[0]} to {whole.columns[-1]}")
    labels = dagman.read(mask).voxels
    organ = encoder.embed(scan, mask=labels == row["label_value"])
    print(f"its {row['label']}: mean feature {organ.values.mean():.3f}")

    # What the encoder attends to: one map per attention head, on the grid of the prepared scan.
    attention = encoder.attention(scan)
    print(f"{len(attention.heads)} attention heads, maps of {' x '.join(map(str, attention.mean.shape))} voxels")


if __name__ == "__main__":
    main()
