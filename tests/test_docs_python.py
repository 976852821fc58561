"""Proves that the Python of the documentation runs as it is written, on a small scan in the folder it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

_ROOT = Path(__file__).parents[1]


def test_python_of_the_guides_runs(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(-950, 20, (40, 40, 40))
    values[8:32, 8:32, 8:32] = 40
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (_ROOT / "docs" / "guides" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    features: Any = names["features"]
    attention: Any = names["attention"]
    assert features.values.shape == (1, len(features.columns))
    assert np.isfinite(features.values).all()
    assert len(attention.heads) > 1
