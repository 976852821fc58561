"""Train a segmentation network: crops around structures, Dice and cross-entropy, and the best weights by inner validation.

A structure that was not contoured in a scan is unknown there: a voxel labelled 0 may be background or any unknown structure.
Every draw has an address (seed, purpose, step, slot), so that draws do not depend on each other.

Notation: B views, K classes (background first), X Y Z sides of a crop in voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from dagman.method.schedules import learning_rate
from dagman.randomness import generator
from dagman.tasks.layer_rates import scale_rates
from dagman.tasks.segment.cases import Case
from dagman.tasks.segment.model import BATCH_CPU, SegmentationModel

Triple = tuple[int, int, int]
WEIGHT_DECAY = 0.01
"""Weight decay of AdamW, on parameters for which `is_decayed` holds. [ours]"""
FOREGROUND = 0.67
"""Share of crops that are centred on a voxel of a structure; the others are anywhere. nnU-Net's 0.33 suits longer training."""
VALIDATIONS = 12
"""Number of parts into which a training is divided; those in the last third end with a validation."""
LEAST_APART = 10
"""Minimum number of steps between validations, which take as long as two steps (twelve forward passes)."""
VALIDATION_CROPS = 12
LEAST_WINDOW = 0.05
"""Smallest margin of the structures' intensity window, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Hyperparameters of a training.

    Attributes:
        steps: Optimiser steps.
        batch: Crops per step.
        rate: Peak learning rate (AdamW, cosine).
        decay: Factor of the learning rate from each layer of the encoder to the one below; 1 for the same rate in all layers.
        mirror: Whether crops are randomly mirrored along all axes.
        seed: Seed of crops and augmentations.
    """

    steps: int
    batch: int = 2
    rate: float = 1e-3
    decay: float = 1.0
    mirror: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CropDraw:
    """A training crop: index of its case, first voxel (may be negative), mirrored axes, and change of intensity."""

    case: int
    start: Triple
    flips: tuple[bool, bool, bool]
    gain: float
    offset: float


def draw_crop(cases: Sequence[Case], side: int, fitting: Fitting, *address: int | str) -> CropDraw:
    """Draw the crop of `side` voxels at an address: a random case, then around a voxel of one of its structures, or anywhere."""
    rng = generator(fitting.seed, "segmentation crop", *address)
    case = int(rng.integers(len(cases)))
    present = [places for places in cases[case].places if len(places)]
    shape = cases[case].voxels.shape
    jitter = rng.integers(-side // 4, side // 4 + 1, size=3)
    if present and rng.random() < FOREGROUND:
        places = present[int(rng.integers(len(present)))]
        center = places[int(rng.integers(len(places)))] + jitter
    else:
        center = np.floor(rng.random(3) * shape).astype(int)
    flips = rng.random(3) < 0.5 if fitting.mirror else np.zeros(3, dtype=bool)
    return CropDraw(
        case=case,
        start=place_crop(center, shape, side),
        flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])),
        gain=float(rng.uniform(0.9, 1.1)),
        offset=float(rng.uniform(-0.05, 0.05)),
    )


def place_crop(center: Sequence[int] | NDArray, shape: Sequence[int], side: int) -> Triple:
    """Return the first voxel of a crop around a voxel, shifted to lie inside the scan; centred along axes that are too short."""
    x, y, z = (
        min(max(int(middle) - side // 2, 0), size - side) if size >= side else -((side - size) // 2)
        for middle, size in zip(center, shape, strict=True)
    )
    return x, y, z


def cut_padded(values: NDArray, start: Triple, side: int, fill: int) -> NDArray:
    """Cut `side`^3 values from `start`, padded with `fill` outside the array."""
    crop = np.full((side,) * 3, fill, dtype=values.dtype)
    source = tuple(slice(max(first, 0), min(first + side, size)) for first, size in zip(start, values.shape, strict=True))
    target = tuple(slice(part.start - first, part.stop - first) for part, first in zip(source, start, strict=True))
    crop[target] = values[source]
    return crop


def take_batch(
    cases: Sequence[Case], draws: Sequence[CropDraw], model: SegmentationModel
) -> tuple[Float[Tensor, "B 1 X Y Z"], Int[Tensor, "B X Y Z"]]:
    """Cut a batch of crops with intensities in [0, 1], and their classes, on the model's device."""
    side, views, labels = model.side, [], []
    for draw in draws:
        case = cases[draw.case]
        axes = [axis for axis in range(3) if draw.flips[axis]]
        view = torch.from_numpy(cut_padded(case.voxels, draw.start, side, model.encoder.pad_value(case.modality)))
        label = torch.from_numpy(cut_padded(case.labels, draw.start, side, 0))
        unit = model.scale_view(view, case.modality) * draw.gain + draw.offset
        views.append(torch.flip(unit, axes).clamp(0.0, 1.0))
        labels.append(torch.flip(label.to(model.encoder.device).long(), axes))
    return torch.stack(views)[:, None], torch.stack(labels)


def list_known(cases: Sequence[Case], draws: Sequence[CropDraw], classes: int) -> Bool[Tensor, "B K"]:
    """List whether each class (background first) is known in the case of each crop."""
    return torch.tensor([[cases[draw.case].knows(code) for code in range(classes)] for draw in draws])


def measure_loss(
    logits: Float[Tensor, "B K X Y Z"], labels: Int[Tensor, "B X Y Z"], known: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, ""]:
    """Compute soft Dice loss (1 minus the mean over structures) plus cross-entropy.

    Dice is computed over the whole batch, because most crops lack most structures, and in float32, because bfloat16 cannot
    represent sums over millions of voxels. `known` states which classes are known in each view (None: all). With unknown classes,
    the loss is marginal (Shi et al., Medical Image Analysis 2021): the likelihood of a voxel labelled 0 is the summed probability
    of background and all unknown structures, and Dice of a structure is computed over the views in which it is known.
    """
    log_probabilities = logits.float().log_softmax(dim=1)
    labelled = log_probabilities.gather(1, labels[:, None])[:, 0]
    probabilities = log_probabilities.exp()
    # Sums per view and class (B K); indices instead of one-hot maps halve the time of the loss.
    places = labels.flatten(1)
    overlap = torch.zeros_like(probabilities[:, :, 0, 0, 0]).scatter_add(1, places, labelled.exp().flatten(1))
    sizes = torch.zeros_like(overlap).scatter_add(1, places, torch.ones_like(places, dtype=overlap.dtype))
    total = probabilities.sum((2, 3, 4)) + sizes
    counted = torch.ones_like(overlap, dtype=torch.bool) if known is None else known.to(overlap.device)
    overlap, total = ((value * counted)[:, 1:].sum(0) for value in (overlap, total))
    dice = ((2 * overlap + 1) / (total + 1))[counted[:, 1:].any(0)]
    if not bool(counted[:, 1:].all()):
        # The label 0 includes all structures that were not contoured.
        merged = ~counted.index_fill(1, counted.new_zeros(1, dtype=torch.long), False)
        unlabelled = log_probabilities.masked_fill(~merged[:, :, None, None, None], -math.inf).logsumexp(dim=1)
        labelled = torch.where(labels == 0, unlabelled, labelled)
    return (1 - dice.mean() if len(dice) else 0) - labelled.mean()


def measure_window(cases: Sequence[Case], model: SegmentationModel) -> tuple[float, float]:
    """Measure the window of the structures' intensities in [0, 1]: the 0.5 and 99.5 percentiles (nnU-Net), widened twofold."""
    values = [
        model.scale_view(torch.from_numpy(case.voxels[tuple(places.T)]), case.modality).cpu().numpy()
        for case in cases
        for places in case.places
        if len(places)
    ]
    if not values:
        return 0.0, 1.0
    low, high = np.percentile(np.concatenate(values), (0.5, 99.5))
    more = max((high - low) / 2, LEAST_WINDOW)
    return float(max(low - more, 0.0)), float(min(high + more, 1.0))


def measure_shares(cases: Sequence[Case], classes: int) -> NDArray[np.float64]:
    """Measure the share of voxels in each class (background first), at least 1e-7 so that its logarithm is finite.

    A structure's share is computed over the cases in which it was contoured; background has the rest.
    """
    counts = np.stack([np.bincount(case.labels.ravel(), minlength=classes) for case in cases])
    known = np.array([[True, *(case.knows(code) for code in range(1, classes))] for case in cases])
    sizes = (counts.sum(axis=1, keepdims=True) * known).sum(axis=0)
    shares: NDArray[np.float64] = (counts * known).sum(axis=0) / np.maximum(sizes, 1)
    if not known.all():
        shares[0] = 1 - shares[1:].sum()
    return np.maximum(shares, 1e-7)


def fit_model(
    model: SegmentationModel,
    cases: Sequence[Case],
    held: Sequence[Case],
    fitting: Fitting,
    notify: Callable[[int, float], None],
) -> list[dict[str, float]]:
    """Train a model's network in place on `cases`, and keep the weights with the best validation on `held`, or the last ones.

    `notify` is called with each step and its loss. Returns the validations (step, dice), which are none if `held` is empty or the
    training is too short for a choice.
    """
    network = model.network
    network.decoder.window.copy_(torch.tensor(measure_window(cases, model)))
    # Otherwise the decoder needs its first hundred steps to learn that most voxels are background.
    network.decoder.set_shares(measure_shares(cases, network.classes))
    groups = scale_rates(network.encoder, network.decoder, rate=fitting.rate, decay=fitting.decay, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    peaks = [group["lr"] for group in optimizer.param_groups]
    best: tuple[float, dict[str, Tensor]] | None = None
    validations: list[dict[str, float]] = []
    planned = plan_validations(fitting.steps) if held else frozenset()
    for step in range(fitting.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = learning_rate(step, fitting.steps, peak=peak, end=peak / 100, warmup=0.05)
        network.train()
        draws = [draw_crop(cases, model.side, fitting, step, slot) for slot in range(fitting.batch)]
        views, labels = take_batch(cases, draws, model)
        with model.autocast():
            logits = network(views)
        loss = measure_loss(logits, labels, list_known(cases, draws, network.classes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        notify(step + 1, loss.item())
        if step + 1 in planned:
            dice = validate_on_crops(model, held, fitting)
            validations.append({"step": step + 1, "dice": dice})
            if best is None or dice >= best[0]:
                best = dice, {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    if best is not None:
        network.load_state_dict(best[1])
    network.eval()
    return validations


def plan_validations(steps: int) -> frozenset[int]:
    """Choose the steps after which a training of `steps` is validated: in its last third, and at its end."""
    every = max(LEAST_APART, steps // VALIDATIONS)
    # Only in the last third, because before that the learning rate is so high that weights could be the best only by chance.
    planned = {step for step in range(every, steps, every) if 3 * step > 2 * steps}
    return frozenset(planned | {steps}) if planned else frozenset()


@torch.inference_mode()
def validate_on_crops(model: SegmentationModel, cases: Sequence[Case], fitting: Fitting) -> float:
    """Compute Dice on fixed crops of cases, over all crops per structure, averaged over structures.

    A third of the crops are anywhere in the scan. A structure counts only in cases in which it was contoured.
    """
    network = model.network.eval()
    overlap = torch.zeros(network.classes, dtype=torch.float64)
    total = torch.zeros(network.classes, dtype=torch.float64)
    plain = Fitting(steps=1, seed=fitting.seed)
    per_case = max(2, math.ceil(VALIDATION_CROPS / len(cases)))
    draws = []
    for number in range(min(len(cases) * per_case, 2 * VALIDATION_CROPS)):
        index = number % len(cases)
        start = draw_crop([cases[index]], model.side, plain, "validation", number).start
        draws.append(CropDraw(case=index, start=start, flips=(False, False, False), gain=1.0, offset=0.0))
    # In batches as for windows (see BATCH_CPU).
    for first in range(0, len(draws), BATCH_CPU):
        chosen = draws[first : first + BATCH_CPU]
        views, labels = take_batch(cases, chosen, model)
        with model.autocast():
            # argmax takes five times as long if classes are not the last axis.
            guess = network(views).max(dim=1).indices
        for known, predicted, true in zip(list_known(cases, chosen, network.classes), guess, labels, strict=True):
            pairs = torch.bincount((true * network.classes + predicted).flatten(), minlength=network.classes**2).cpu()
            counts = pairs.reshape(network.classes, network.classes) * 1.0
            overlap += counts.diagonal() * known
            total += (counts.sum(0) + counts.sum(1)) * known
    seen = total[1:] > 0
    return float((2 * overlap[1:][seen] / total[1:][seen]).mean()) if seen.any() else 0.0
