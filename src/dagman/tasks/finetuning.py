"""Fine-tune an encoder with a linear head on crops of items, for any loss of (outputs, targets).

The head has the same inputs as a linear probe (mean, std and max of each stage inside the mask), standardised. It can start from a
fitted probe, because a random head would distort the pretrained features (Kumar et al., ICLR 2022). Early stopping keeps the best
epoch, which may be the start.

Notation: B items of a batch, P pooled features, K outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dagman.encoder.encoder import Encoder
from dagman.errors import SettingsError, TaskError
from dagman.evaluation.splits import plan_splits
from dagman.model import to_unit_range
from dagman.randomness import generator
from dagman.store.preparation import SCALED_RANGE
from dagman.tasks.inputs.item_crops import ItemCrop
from dagman.tasks.layer_rates import scale_rates

Indices = NDArray[np.int64]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs (B K, float32) and targets (B ...) to a scalar; gets whole batches, so it can compare items (Cox)."""
_State = dict[str, Tensor]

_PIECE = 2**21 * 24
"""Voxels times embedding channels per forward pass on the CPU: 8 crops of 64^3 for `tiny`, about 3 GB."""
_GPU_PIECES = 24


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of fine-tuning; defaults follow the paper as far as training on a few dozen items permits."""

    epochs: int = 20
    "Maximum number of epochs. [ours; paper 1,000]"
    patience: int = 6
    "Epochs without a lower inner validation loss before stopping; only in the second half, as the rate is high before. [ours]"
    batch: int = 40
    "Items per step; fewer if an epoch would have fewer than `least_steps`. Paper, section 4."
    least_steps: int = 8
    "Minimum number of steps per epoch; lower for a loss that compares the items of a batch (Cox). [ours]"
    rate: float = 5e-4
    "Learning rate of the head and the last layer. [ours; paper 2e-4, over a hundred times as many steps]"
    layer_decay: float = 1.0
    "Factor of the learning rate from each layer to the one below; the same for all models in a comparison. [ours]"
    weight_decay: float = 0.05
    "Weight decay of AdamW, on matrices. METHOD, Training."
    warmup: float = 0.1
    "Share of steps for linear warmup, followed by cosine decay. [ours]"
    clip: float = 3.0
    "Maximum norm of the gradient. METHOD, Training."
    flips: str = "xyz"
    "Axes along which crops are randomly flipped; without x if left and right are classes. [ours]"
    shift: float = 0.03
    "Largest shift of the intensities, which are in [0, 1]. [ours]"
    scale: float = 0.1
    "Largest relative change of the intensities. [ours]"


PRESETS = {
    "short": FinetuneSettings(),
    "paper": FinetuneSettings(epochs=1000, patience=1000, rate=2e-4, layer_decay=1.0),
}
"""Presets of fine-tuning: `short` takes minutes for a few dozen items; `paper` has 1,000 epochs at 2e-4 (section 4)."""


def choose_finetuning(preset: str, *, epochs: int | None = None, layer_decay: float | None = None) -> FinetuneSettings:
    """Return a preset, with epochs and layer decay replaced if given; raises SettingsError for unknown or impossible values."""
    if preset not in PRESETS:
        raise SettingsError(f"--finetuning {preset!r} is not a preset", do=f"Choose one of {', '.join(PRESETS)}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise SettingsError(f"--layer-decay is {layer_decay:g}", do="Give more than 0, at most 1")
    chosen = PRESETS[preset]
    return replace(
        chosen,
        epochs=chosen.epochs if epochs is None else epochs,
        layer_decay=chosen.layer_decay if layer_decay is None else layer_decay,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """A linear layer on standardised pooled features, as plain arrays: mean P, scale P, weights K P, bias K."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetunedModel:
    """A fine-tuned encoder with its head."""

    encoder: Encoder
    head: LinearHead
    history: tuple[dict[str, float], ...] = field(default=(), repr=False)
    "`epoch`, `train` and `val` loss of each epoch."
    best: int = 0
    "The epoch whose weights were kept; 0 is the start."
    ended: str = ""
    "Why the training ended."

    def predict(self, crops: Sequence[ItemCrop]) -> NDArray[np.float64]:
        """Compute outputs (items x K), without softmax."""
        device = self.encoder.device
        head = _HeadLayer(self.head).to(device)
        return _run_all(self.encoder, self.encoder.network.encoder, head, crops).double().cpu().numpy()


def hold_out(
    patients: ArrayLike, labels: ArrayLike, train: Indices, *, share: float = 0.2, seed: int = 0
) -> tuple[Indices, Indices]:
    """Split `train` by patient, stratified, into items to fit and to stop by; the latter are none if a class has one patient."""
    patients, labels = np.asarray(patients, dtype=str), np.asarray(labels)
    counts = [len(set(patients[train][labels[train] == label].tolist())) for label in np.unique(labels[train])]
    folds = min(round(1 / share), *counts) if counts else 0
    if folds < 2:
        return train, train[:0]
    inner = plan_splits(patients[train], labels[train], folds=folds, seed=seed)[0]
    if len(np.unique(labels[train[inner.train]])) < len(counts):
        return train, train[:0]
    return train[inner.train], train[inner.test]


def finetune(
    encoder: Encoder,
    crops: Sequence[ItemCrop],
    targets: ArrayLike,
    *,
    loss: Loss,
    outputs: int,
    train: Indices,
    val: Indices,
    start: LinearHead | None = None,
    settings: FinetuneSettings | None = None,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> FinetunedModel:
    """Train a copy of the encoder with a linear head on crops[train], with early stopping by the loss on crops[val].

    The result is reproducible for a given seed and machine. Raises TaskError if the loss is not finite.

    Args:
        encoder: The pretrained encoder; it is not modified.
        crops: Crops of all items.
        targets: Target of each item of `crops`, of any trailing shape.
        outputs: Number of outputs K.
        val: If empty, all epochs are run and the last one is kept.
        start: Initial head; None: zeros.
        on_epoch: Called with epoch, training and validation loss after each epoch.
    """
    settings = settings or FinetuneSettings()
    training = _Training(
        encoder=encoder, crops=crops, values=torch.from_numpy(np.asarray(targets)), train=train, val=val, loss=loss,
        head=start or _measure_start(encoder, [crops[i] for i in train], outputs), settings=settings, seed=seed,
    )  # fmt: skip
    best, kept = 0, training.copy_state()
    lowest = training.validate()
    history = [{"epoch": 0.0, "train": math.nan, "val": lowest}]
    ended = f"all {settings.epochs} epochs were run"
    for epoch in range(1, settings.epochs + 1):
        row = {"epoch": float(epoch), "train": training.run_epoch(epoch), "val": training.validate()}
        history.append(row)
        if on_epoch:
            on_epoch(row)
        if not len(val) or row["val"] < lowest:
            best, lowest, kept = epoch, row["val"], training.copy_state()
        elif 2 * epoch >= settings.epochs and epoch - best >= settings.patience:
            ended = f"no better validation loss in {settings.patience} epochs"
            break
    network, head = training.restore(kept)
    tuned = copy.copy(encoder.network)
    tuned._modules = {**encoder.network._modules, "encoder": network.requires_grad_(False).eval()}
    return FinetunedModel(
        encoder=replace(encoder, network=tuned), head=head.to_arrays(), history=tuple(history), best=best, ended=ended
    )


class _Training:
    """State of a training: a copy of the encoder, the head, the optimiser, and the number of steps."""

    def __init__(
        self, *, encoder: Encoder, crops: Sequence[ItemCrop], values: Tensor, train: Indices, val: Indices, loss: Loss,
        head: LinearHead, settings: FinetuneSettings, seed: int,
    ) -> None:  # fmt: skip
        self.encoder, self.crops, self.values, self.train, self.val, self.loss = encoder, crops, values, train, val, loss
        self.settings, self.seed = settings, seed
        self.network = copy.deepcopy(encoder.network.encoder).requires_grad_(True).train()
        self.head = _HeadLayer(head).to(encoder.device)
        rates = {"rate": settings.rate, "decay": settings.layer_decay, "weight_decay": settings.weight_decay}
        self.optimiser = torch.optim.AdamW(scale_rates(self.network, self.head.linear, **rates))
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        self.batch = max(1, min(settings.batch, math.ceil(len(train) / settings.least_steps)))
        self.steps, self.step = settings.epochs * math.ceil(len(train) / self.batch), 0

    def run_epoch(self, epoch: int) -> float:
        """Run an epoch and return the mean loss over training items; raises TaskError if it is not finite."""
        total = 0.0
        for chosen in _draw_batches(self.train, self.batch, self.seed, epoch):
            for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
                group["lr"] = peak * anneal(self.step, self.steps, self.settings.warmup)
            views = [_augment(self.encoder, self.crops[i], self.settings, self.seed, epoch, int(i)) for i in chosen]
            value = self.loss(
                _run_pieces(self.encoder, self.network, self.head, views), self.values[chosen].to(self.encoder.device)
            )
            if not torch.isfinite(value):
                raise TaskError(f"the fine-tuning loss is not finite in epoch {epoch}", do="Lower the learning rate")
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()
            parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            self.optimiser.step()
            total += float(value.detach()) * len(chosen)
            self.step += 1
        return total / len(self.train)

    def validate(self) -> float:
        """Compute the loss of the validation items; NaN if there are none."""
        if not len(self.val):
            return math.nan
        self.network.eval()
        with torch.no_grad():
            outputs = _run_all(self.encoder, self.network, self.head, [self.crops[i] for i in self.val])
            loss = float(self.loss(outputs, self.values[self.val].to(self.encoder.device)))
        self.network.train()
        return loss

    def copy_state(self) -> tuple[_State, _State]:
        return _copy_state(self.network), _copy_state(self.head)

    def restore(self, kept: tuple[_State, _State]) -> tuple[nn.Module, _HeadLayer]:
        self.network.load_state_dict(kept[0])
        self.head.load_state_dict(kept[1])
        return self.network, self.head


def anneal(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate at a step (from 0) as a share of the peak: linear warmup over `warmup` of the steps, then cosine."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def pool_maps(maps: Sequence[Tensor], inside: Tensor) -> Tensor:
    """Pool mean, std and max of each map (B C x y z) over the voxels inside (B X Y Z), like `pool_features` but differentiable.

    Returns the pooled features, B P.
    """
    parts = []
    for features in maps:
        strides = [side // cells for side, cells in zip(inside.shape[1:], features.shape[2:], strict=True)]
        coverage = nn.functional.avg_pool3d(inside[:, None].float(), strides).flatten(2)
        cells = features.float().flatten(2)
        weights = coverage / coverage.sum(dim=2, keepdim=True)
        mean = (cells * weights).sum(dim=2)
        variance = ((cells - mean[..., None]).square() * weights).sum(dim=2)
        # The gradient of the root is infinite at 0, which occurs if a structure covers only one cell.
        spread = (variance + 1e-8).sqrt()
        parts += [mean, spread, cells.masked_fill(coverage == 0, -math.inf).amax(dim=2)]
    return torch.cat(parts, dim=1)


def pool_crops(encoder: Encoder, crops: Sequence[ItemCrop]) -> NDArray[np.float32]:
    """Compute the pooled features of the frozen encoder (items x P), which are the inputs of the head before training."""
    with torch.no_grad():
        pooled = [_pool_views(encoder, encoder.network.encoder, [_to_view(encoder, crop)]) for crop in crops]
    return torch.cat(pooled).cpu().numpy()


class _HeadLayer(nn.Module):
    """A trainable `LinearHead`."""

    mean: Tensor
    scale: Tensor

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.array(head.mean, dtype=np.float32)))
        self.register_buffer("scale", torch.from_numpy(np.array(head.scale, dtype=np.float32)))
        self.linear = nn.Linear(head.weights.shape[1], head.weights.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(np.asarray(head.weights, dtype=np.float32)))
            self.linear.bias.copy_(torch.from_numpy(np.asarray(head.bias, dtype=np.float32)))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear((pooled - self.mean) / self.scale)

    def to_arrays(self) -> LinearHead:
        def plain(tensor: Tensor) -> NDArray[np.float32]:
            return tensor.detach().cpu().numpy().copy()

        return LinearHead(
            mean=plain(self.mean), scale=plain(self.scale), weights=plain(self.linear.weight), bias=plain(self.linear.bias)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """A crop on the device, with intensities in [0, 1]: voxels 1 X Y Z, inside X Y Z."""

    voxels: Tensor
    inside: Tensor


def _measure_start(encoder: Encoder, crops: Sequence[ItemCrop], outputs: int) -> LinearHead:
    """Make a zero head that standardises features by their mean and deviation over the training items before training."""
    pooled = torch.from_numpy(pool_crops(encoder, crops)).double()
    mean, spread = pooled.mean(dim=0), pooled.std(dim=0, correction=0)
    scale = torch.where(spread > 1e-6 * (mean.abs() + 1), spread, torch.ones_like(spread))
    size = pooled.shape[1]
    return LinearHead(
        mean=mean.float().numpy(),
        scale=scale.float().numpy(),
        weights=np.zeros((outputs, size), dtype=np.float32),
        bias=np.zeros(outputs, dtype=np.float32),
    )


def _draw_batches(train: Indices, batch: int, seed: int, epoch: int) -> Iterator[Indices]:
    order = train[generator(seed, "finetune order", epoch).permutation(len(train))]
    # Batches of nearly equal size, because a last batch with a single item would have the weight of a full one.
    yield from np.array_split(order, math.ceil(len(order) / batch))


def _to_view(encoder: Encoder, crop: ItemCrop) -> _View:
    low, high = SCALED_RANGE if crop.modality == "MR" else (encoder.config.low, encoder.config.high)
    voxels = to_unit_range(torch.from_numpy(crop.voxels).to(encoder.device), low, high)
    return _View(voxels=voxels[None], inside=torch.from_numpy(crop.inside).to(encoder.device))


def _augment(encoder: Encoder, crop: ItemCrop, settings: FinetuneSettings, seed: int, epoch: int, index: int) -> _View:
    draw = generator(seed, "finetune view", epoch, index)
    mirrored = draw.random(3) < 0.5
    scale, shift = draw.uniform(-1, 1, size=2) * (settings.scale, settings.shift)
    view = _to_view(encoder, crop)
    axes = [axis for axis, name in enumerate("xyz") if mirrored[axis] and name in settings.flips]
    voxels = (view.voxels * (1 + scale) + shift).clamp(0.0, 1.0)
    return _View(voxels=voxels.flip([axis + 1 for axis in axes]), inside=view.inside.flip(axes))


def _pool_views(encoder: Encoder, network: nn.Module, views: Sequence[_View]) -> Tensor:
    stacked = torch.stack([view.voxels for view in views])
    with torch.autocast(torch.device(encoder.device).type, dtype=torch.bfloat16, enabled=encoder.precision == "bf16"):
        maps = network(stacked)
    return pool_maps(maps, torch.stack([view.inside for view in views]))


def _run_pieces(encoder: Encoder, network: nn.Module, head: _HeadLayer, views: Sequence[_View]) -> Tensor:
    """Compute the outputs of a batch, B K; a batch that does not fit in memory is processed in pieces with checkpointing."""
    pieces = _cut_pieces(encoder, views)
    if len(pieces) == 1:
        return head(_pool_views(encoder, network, views))
    pooled = [
        checkpoint(_pool_views, encoder, network, [views[i] for i in piece], use_reentrant=False, preserve_rng_state=False)
        for piece in pieces
    ]
    order = torch.tensor([i for piece in pieces for i in piece], device=encoder.device)
    return head(torch.cat(pooled)[order.argsort()])


def _cut_pieces(encoder: Encoder, views: Sequence[_View]) -> list[list[int]]:
    """Divide views into pieces of equal crop size that fit in memory, as indices."""
    budget = _PIECE * (1 if encoder.device == "cpu" else _GPU_PIECES)
    alike: dict[int, list[int]] = {}
    for index, view in enumerate(views):
        alike.setdefault(view.voxels.shape[1], []).append(index)
    pieces = []
    for side, indices in sorted(alike.items()):
        count = max(1, budget // (side**3 * encoder.network.encoder.load))
        pieces += [indices[first : first + count] for first in range(0, len(indices), count)]
    return pieces


@torch.no_grad()
def _run_all(encoder: Encoder, network: nn.Module, head: _HeadLayer, crops: Sequence[ItemCrop]) -> Tensor:
    if not crops:
        return torch.empty((0, head.linear.out_features))
    # One crop at a time: larger batches are not faster on the CPU, and rounding would depend on the composition of the batch.
    return torch.cat([head(_pool_views(encoder, network, [_to_view(encoder, crop)])) for crop in crops])


def _copy_state(module: nn.Module) -> _State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
