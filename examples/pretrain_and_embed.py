"""Pretrain an encoder on the built-in cohort, read it back, and describe a scan and its organs: about ten seconds of a CPU core.

    python examples/pretrain_and_embed.py --out example

To train in earnest, replace `write_cohort` with a folder of your own scans, and leave out `TINY_SETTINGS` and the spacing:
the settings are far below the size `tiny`, so that this takes no time.
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
    parser.add_argument("--out", type=Path, default=Path("example"), help="folder for everything that is written")
    parser.add_argument("--steps", type=int, default=20, help="steps of pretraining")
    arguments = parser.parse_args()
    out = arguments.out

    # Six synthetic CTs at 5 mm, with tables of their organs and nodules.
    cohort = write_cohort(out / "cohort", patients=6, seed=0, spacing=5.0)

    # A store holds scans as training reads them: one spacing, cropped to the body.
    store = dagman.prepare(cohort.scans, out / "store", Preparation(spacing=4.0))
    print(f"{store.kept + store.already} scans in the store")

    # Repeat the script and the run continues, or does nothing if it is complete.
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

    # Where the encoder looks: one map for each attention head, on the prepared grid.
    attention = encoder.attention(scan)
    print(f"{len(attention.heads)} attention heads, maps of {' x '.join(map(str, attention.mean.shape))} voxels")


if __name__ == "__main__":
    main()
