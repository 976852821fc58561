"""Segmentation models: an encoder with its preprocessing, a decoder, and the structures; saving and loading.

`model/` contains `segmentation.json` (structures and contract), `decoder.safetensors`, and `encoder/`, an ordinary encoder folder
with the weights as trained here. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dagman.devices import choose_precision
from dagman.encoder.encoder import Encoder
from dagman.encoder.loading import load_encoder
from dagman.encoder.tiling import FLOOR_HALF, Forward, mirror_forward, plan_tiles, sliding_window_inference, stream_planes
from dagman.errors import TaskError
from dagman.model import to_unit_range
from dagman.randomness import address
from dagman.records.files import write_whole
from dagman.records.hashes import hash_array, hash_bytes
from dagman.scans.scan import Modality, Scan
from dagman.store.preparation import SCALED_RANGE, PreparedScan, prepare_scan
from dagman.tables.structures import Structure
from dagman.tasks.contract import Contract, read_contract
from dagman.tasks.segment.scan_labels import label_planes
from dagman.tasks.segment.unet import SegmentationNetwork

FORMAT = 1
FILE = "segmentation.json"
OVERLAP = 0.5
"""Overlap of neighbouring windows as a share of their side, as in nnU-Net."""
BATCH_CPU, BATCH_GPU = 2, 4
"""Windows per forward pass. For a single window, torch does not use oneDNN for CPU convolutions with few channels, which takes 1.4
times as long as two windows."""
MOST_MEMORY = 2**30
"""Size in bytes above which the class probabilities of a scan are stored in float16."""
MOST_HELD, MOST_ANSWERED = 2**28, 2**28
"""Size in bytes above which unfinished planes of class probabilities are stored in float16, and maximum size of the outputs of a
batch of windows (except for a single window)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationModel:
    """A segmentation network with everything needed to apply it to a scan.

    Attributes:
        encoder: Preprocessing, device and precision; its spacing is that of the training, and its view the side of a window.
        network: The network; class 0 is background, class i is structures[i - 1].
        structures: The structures.
        mirrored: Whether it was trained on mirrored crops.
        contract: What it was trained on; None for a model that is not saved.
    """

    encoder: Encoder
    network: SegmentationNetwork = field(repr=False)
    structures: tuple[Structure, ...]
    mirrored: bool = False
    contract: Contract | None = field(default=None, repr=False)

    @cached_property
    def digest(self) -> str:
        """Hash of everything that its predictions depend on."""
        decoder = [f"{name}:{hash_array(value.cpu().numpy())}" for name, value in sorted(self.network.decoder.state_dict().items())]
        return hash_bytes(f"{self.encoder.digest}|{self.structures}|{decoder}".encode())

    @property
    def side(self) -> int:
        """Side of a window in voxels."""
        return self.encoder.config.view

    @property
    def names(self) -> dict[int, str]:
        """Name of each value in its label maps."""
        return {structure.values[0]: structure.name for structure in self.structures}

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of a forward pass, with bfloat16 if that is the encoder's precision."""
        kind = torch.device(self.encoder.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.encoder.precision == "bf16")

    def scale_view(self, values: Tensor, modality: Modality) -> Tensor:
        """Scale stored values to the network's intensities in [0, 1], on its device."""
        config = self.encoder.config
        low, high = SCALED_RANGE if modality == "MR" else (config.low, config.high)
        return to_unit_range(values.to(self.encoder.device), low, high)

    @torch.inference_mode()
    def measure_class_weights(self, prepared: PreparedScan, *, mirror: bool = False) -> Float[Tensor, "K X Y Z"]:
        """Compute class probabilities of a prepared scan; `mirror` averages over the 8 mirrored forms of each window."""
        size = 4 * self.network.classes * int(np.prod(prepared.shape))
        tiling = plan_tiles(prepared.shape, self.side, overlap=OVERLAP, alignment=1, floor=FLOOR_HALF)
        (probabilities,) = sliding_window_inference(
            self._answer(prepared.modality, mirror=mirror),
            prepared.voxels,
            tiling,
            fill=self.encoder.pad_value(prepared.modality),
            batch=BATCH_CPU if self.encoder.device == "cpu" else BATCH_GPU,
            dtype=torch.float16 if size > MOST_MEMORY else torch.float32,
        )
        return probabilities[(slice(None), *tiling.scan_box)]

    def _answer(self, modality: Modality, *, mirror: bool) -> Forward:
        """Return a function from windows of stored values to class probabilities."""

        def forward(windows: Float[Tensor, "B 1 S S S"]) -> list[Float[Tensor, "B K S S S"]]:
            with self.autocast():
                probabilities = self.network(self.scale_view(windows, modality)).float()
            # In place and plane by plane: with many classes, a second array of this size would take too much memory.
            for window in probabilities:
                for plane in window.unbind(1):
                    plane.copy_(plane.softmax(dim=0))
            return [probabilities]

        return mirror_forward(forward) if mirror else forward

    def label_scan(self, scan: Scan, *, mirror: bool = False) -> NDArray[np.uint8]:
        """Predict the class of each voxel of a scan from `encoder.read`, on the scan's own grid (X Y Z)."""
        return self.label_prepared(prepare_scan(scan, self.encoder.preparation), scan, mirror=mirror)

    def label_prepared(self, prepared: PreparedScan, scan: Scan, *, mirror: bool = False) -> NDArray[np.uint8]:
        """Like `label_scan`, for a scan that is already prepared; the voxels of `scan` are not used (see `drop_voxels`)."""
        shape, classes = prepared.shape, self.network.classes
        # Planes across the longest axis are the smallest, which saves memory.
        axis = int(np.argmax(shape))
        held = 4 * classes * self.side * int(np.prod(shape)) // shape[axis]
        window = 4 * classes * self.side**3
        most = BATCH_CPU if self.encoder.device == "cpu" else BATCH_GPU
        tiling = plan_tiles(shape, self.side, overlap=OVERLAP, alignment=1, floor=FLOOR_HALF)
        with torch.inference_mode():
            slabs = stream_planes(
                self._answer(prepared.modality, mirror=mirror),
                prepared.voxels,
                tiling,
                axis,
                fill=self.encoder.pad_value(prepared.modality),
                batch=max(1, min(most, MOST_ANSWERED // window)),
                dtype=torch.float16 if held > MOST_HELD else torch.float32,
            )
            return label_planes(slabs, axis, prepared, scan)

    def to_values(self, classes: NDArray[np.uint8]) -> NDArray:
        """Convert classes to the structures' values in a label map, in the smallest unsigned type."""
        values = [0, *(structure.values[0] for structure in self.structures)]
        kind = np.uint8 if max(values) < 256 else np.uint16
        return np.array(values, dtype=kind)[classes]


def adapt_encoder(encoder: Encoder, *, side: int, spacing: float) -> Encoder:
    """Return an encoder that prepares scans at `spacing` (mm), for windows of `side` voxels."""
    return replace(encoder, config=replace(encoder.config, spacing=spacing, view=side))


def start_model(encoder: Encoder, structures: Sequence[Structure], *, mirrored: bool = False, seed: int = 0) -> SegmentationModel:
    """Make a model for training, with a copy of an adapted encoder's weights, and a randomly initialised decoder."""
    backbone = copy.deepcopy(encoder.network).requires_grad_(True)
    # Its inputs change during training, but it is not trained itself.
    backbone.semantic_attention = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, "decoder") % 2**32)
        network = SegmentationNetwork(backbone.encoder, len(structures) + 1)
    return SegmentationModel(
        encoder=replace(encoder, network=backbone, config=replace(encoder.config, semantic=None)),
        network=network.to(encoder.device),
        structures=tuple(structures),
        mirrored=mirrored,
    )


def save_model(model: SegmentationModel, folder: str | Path) -> None:
    """Write the model's folder."""
    decoder = {name: value.detach().cpu().contiguous() for name, value in model.network.decoder.state_dict().items()}
    values = {
        "format": FORMAT,
        "task": "segment",
        "structures": [asdict(structure) for structure in model.structures],
        "mirrored": model.mirrored,
        "contract": model.contract.to_values() if model.contract else None,
    }
    with write_whole(folder) as temporary:
        temporary.mkdir()
        save_file(decoder, temporary / "decoder.safetensors", metadata={"format": "pt"})
        model.encoder.save(temporary / "encoder")
        (temporary / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_model(folder: str | Path, *, device: str = "auto") -> SegmentationModel:
    """Load a model from `OUT/model`, given this folder or OUT.

    Raises:
        TaskError: There is no model, or it is damaged.
    """
    path = Path(folder)
    path = path / "model" if (path / "model" / FILE).is_file() else path
    values = _read_values(path)
    encoder = load_segmenting(load_encoder, path / "encoder", device=device)
    try:
        structures = tuple(Structure(name=one["name"], values=tuple(one["values"])) for one in values["structures"])
        model = start_model(encoder, structures, mirrored=bool(values["mirrored"]))
        model.network.decoder.load_state_dict(load_file(path / "decoder.safetensors", device=encoder.device))
        # Until the end of November 2026, only the scans were recorded.
        before = Contract(units=("scan",), scans=tuple(values.get("trained_on", ())))
        contract = read_contract(values.get("contract")) or before
    except (KeyError, TypeError, OSError, SafetensorError, RuntimeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TaskError(f"the model is damaged ({what})", where=path, do="Run dagman segment again") from None
    model.network.requires_grad_(False).eval()
    return replace(model, contract=contract)


def load_segmenting(load: Callable[..., Encoder], source: Any, *, device: str = "auto") -> Encoder:
    """Load an encoder by `load_encoder` or `load_network`, with the precision for segmentation: bf16 where that is safe."""
    encoder = load(source, device=device)
    if encoder.device == "cpu" and encoder.config.backbone not in ("swin", "vit"):
        # The bf16 gradients of 3D convolutions are wrong on CPUs (see SegmentationNetwork.forward).
        return encoder
    return replace(encoder, precision=choose_precision("auto", encoder.device).value)


def _read_values(path: Path) -> dict[str, Any]:
    do = "Give the --out folder of dagman segment"
    try:
        values: dict[str, Any] = json.loads((path / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskError(f"holds no segmentation model (no {FILE})", where=path, do=do) from None
    except ValueError as error:
        raise TaskError(f"{FILE} is damaged ({error})", where=path, do="Run dagman segment again") from None
    if values.get("format") != FORMAT:
        raise TaskError(f"{FILE} has another format", where=path, do="Run dagman segment again with this version")
    return values
