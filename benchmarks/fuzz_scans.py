"""Mutated NRRD, MetaImage, NIfTI and DICOM files through `dagman inspect`'s own functions: what is accepted, refused, or escapes.

    python benchmarks/fuzz_scans.py --files 100 --seconds 120

Files are made from one small synthetic CT, and every mutation follows from the seed and the file's number. A file counts as

- *accepted*, or *refused* with a reason in plain words;
- *foreign* when the reason names a class of Python's exceptions, *own fault* when a line of dagman raised it;
- *ended reader* when it ended the process that reads NRRD and MetaImage (the reason says so, and the next file is read);
- *escaped* when an exception reached the caller. A crash of the whole process ends the run; --verbose names the file.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK

from dagman.randomness import generator
from dagman.scans.discovery import find_series
from dagman.scans.faults import OWN_FAULT
from dagman.scans.inspection import inspect_series

FORMATS = ("nrrd", "mha", "nifti", "dicom")
_VALUES = (b"-1", b"0", b"nan", b"4294967296", b"1e300", b"%s%n", b"", b"\x00", b"100", b"9" * 40, b"a" * 100_000)
_BYTES = (0, 1, 127, 128, 255)


@dataclass
class Outcomes:
    """How many files ended how, with the first few reasons of the kinds that should not be."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        """Count one file."""
        self.counts[kind] += 1
        if kind not in ("accepted", "refused") and len(self.examples.setdefault(kind, [])) < 5:
            self.examples[kind].append(text)


def fuzz_format(name: str, files: int, *, seed: int, folder: Path, seconds: float, verbose: bool = False) -> Outcomes:
    """Read `files` mutated files of a format, or as many as there is time for."""
    sources = _write_sources(name, folder)
    outcomes, end = Outcomes(), time.monotonic() + seconds
    for number in range(files):
        if time.monotonic() > end:
            break
        rng = generator(seed, f"fuzz {name}", number)
        place = folder / "mutated"
        shutil.rmtree(place, ignore_errors=True)
        for path, content in _mutate(sources, rng):
            target = place / path.relative_to(folder / "sources")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        if verbose:
            print(name, number, flush=True)
        outcomes.add(*_read(place))
    return outcomes


def _read(place: Path) -> tuple[str, str]:
    try:
        found = find_series(place)
        rows = [inspect_series(series) for series in found.series]
    except Exception as error:
        return "escaped", f"{type(error).__name__}: {error}"
    reasons = [row.reason for row in rows if not row.accepted] + [one.reason for one in found.refused]
    for kind, sign in (("own fault", OWN_FAULT), ("ended reader", "ends the process"), ("foreign", r"[A-Z]\w+(Error|Exception)\b")):
        for reason in reasons:
            if re.search(sign, reason):
                return kind, reason
    return ("refused", reasons[0]) if reasons else ("accepted", "")


def _mutate(sources: list[Path], rng: np.random.Generator) -> Iterator[tuple[Path, bytes]]:
    """All files of a scan, one of them changed in one to three places."""
    chosen = int(rng.integers(len(sources)))
    # One folder of slices is one scan; of the other formats one variant is read at a time.
    kept = sources if sources[0].suffix == ".dcm" else [sources[chosen]]
    for path in kept:
        content = bytearray(path.read_bytes())
        if path == sources[chosen]:
            for _ in range(int(rng.integers(1, 4))):
                _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](content, rng)
        yield (path.with_name(f"mutated{''.join(path.suffixes)}") if len(kept) == 1 else path), bytes(content)


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """A place, three times of four in the header."""
    most = min(len(content), 1200) if rng.random() < 0.75 else len(content)
    return int(rng.integers(max(1, most)))


def _flip_bit(content: bytearray, rng: np.random.Generator) -> None:
    if content:
        content[_place(content, rng)] ^= 1 << int(rng.integers(8))


def _set_byte(content: bytearray, rng: np.random.Generator) -> None:
    if content:
        content[_place(content, rng)] = _BYTES[int(rng.integers(len(_BYTES)))]


def _cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[_place(content, rng) :]


def _remove(content: bytearray, rng: np.random.Generator) -> None:
    start = _place(content, rng)
    del content[start : start + int(rng.integers(1, 64))]


def _repeat(content: bytearray, rng: np.random.Generator) -> None:
    start = _place(content, rng)
    content[start:start] = content[start : start + int(rng.integers(1, 256))]


def _insert_value(content: bytearray, rng: np.random.Generator) -> None:
    """Behind the = or : of a header of text, or anywhere."""
    value = _VALUES[int(rng.integers(len(_VALUES)))]
    signs = [at for at, sign in enumerate(content[:1200]) if sign in b"=:"]
    start = signs[int(rng.integers(len(signs)))] + 1 if signs else _place(content, rng)
    line = content.find(b"\n", start)
    content[start : line if 0 <= line < start + 200 else start + len(value)] = b" " + value


_MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _cut,
    _remove,
    _repeat,
    _insert_value,
    _insert_value,
)


def make_body(side: int = 24, slices: int = 8) -> np.ndarray:
    """HU, X Y Z: air, fat around muscle, with the noise of a scanner."""
    x, y, _ = np.mgrid[:side, :side, :slices] - (side - 1) / 2
    hu = np.full(x.shape, -1000.0)
    hu[np.hypot(x, y) < 0.4 * side] = -100
    hu[np.hypot(x, y) < 0.3 * side] = 50
    return np.rint(hu + generator(0, "fuzz body").normal(0, 15, hu.shape)).clip(-1024, None).astype(np.int16)


def _write_sources(name: str, folder: Path) -> list[Path]:
    voxels, sources = make_body(), folder / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    if name in ("nrrd", "mha"):
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
        image.SetSpacing([1.5, 1.5, 3.0])
        for packed in (False, True):
            SimpleITK.WriteImage(image, str(sources / f"{packed:d}.{name}"), packed)
    elif name == "nifti":
        for suffix in (".nii", ".nii.gz"):
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 3, 1])), sources / f"a{suffix}")
    else:
        _write_dicom(voxels, sources)
    return sorted(sources.iterdir())


def _write_dicom(voxels: np.ndarray, folder: Path) -> None:
    for index in range(voxels.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{index + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID, data.Modality = "1.2.4", "1.2.5", "synthetic", "CT"
        data.ImageType, data.AcquisitionNumber, data.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, index + 1
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * index]
        data.PixelSpacing, data.SliceThickness = [1.5, 1.5], 3
        data.Columns, data.Rows = voxels.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.add_new("PixelPaddingValue", "SS", -2000)
        data.PixelData = np.ascontiguousarray(voxels[:, :, index].T).tobytes()
        data.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)


def main() -> None:
    """Run all formats and print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100, help="mutated files of each format (default: 100)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300, help="at most, for each format (default: 300)")
    parser.add_argument("--verbose", action="store_true", help="print the number of each file before it is read")
    given = parser.parse_args()
    for name in given.formats:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = fuzz_format(
                name, given.files, seed=given.seed, folder=Path(folder), seconds=given.seconds, verbose=given.verbose
            )
        print(json.dumps({"format": name, "files": outcomes.counts.total(), **outcomes.counts, "examples": outcomes.examples}))


if __name__ == "__main__":
    main()
