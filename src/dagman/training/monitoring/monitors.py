"""The monitors' measurements on fixed validation views (METHOD, Monitors): pure formulas over the networks' outputs.

n views or rows, K prototypes, N units, H heads. Entropies are in nats unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dagman.method.centering import entropy
from dagman.model.swin import StageAttention

BODY = 1 / 30
"""Mean intensity in [0, 1] above which a unit counts as body: -950 HU in the default range; air outside is 0."""


def measure_targets(targets: Tensor, logits: Tensor, student_temperature: float) -> dict[str, float]:
    """H, Hx, MI, gain and cross entropy of one projector.

    Args:
        targets: P_t, n x K.
        logits: The student's logits for the same rows, n x K.
        student_temperature: tau_s.
    """
    targets = targets.float()
    rows, prototypes = targets.shape
    ln_k = math.log(prototypes)
    mean_entropy = entropy(targets).mean().item()
    entropy_of_mean = entropy(targets.mean(dim=0)).item()
    cross = -(targets * F.log_softmax(logits.float() / student_temperature, dim=-1)).sum(dim=-1).mean().item()
    room = entropy_of_mean - mean_entropy
    return {
        "H": mean_entropy / ln_k,
        "Hx": entropy_of_mean / ln_k,
        "MI": room / max(min(math.log(max(rows, 2)), ln_k), 1e-12),
        "gain": (entropy_of_mean - cross) / room if room > 1e-6 else 0.0,
        "ce": cross,
        "ln_k": ln_k,
    }


def fill_from_visible(view: Tensor, hidden: Tensor) -> Tensor:
    """Push-pull fill: masked averages down a pyramid, trilinear up; visible voxels stay.

    Args:
        view: n 1 X Y Z.
        hidden: n X Y Z, True = masked.
    """
    visible = (~hidden)[:, None].to(view.dtype)
    return _pull(view * visible, visible)


def _pull(weighted: Tensor, weight: Tensor) -> Tensor:
    known = weighted / weight.clamp_min(1e-12)
    if min(weighted.shape[2:]) == 1 or bool((weight > 0).all()):
        mean = weighted.sum(dim=(2, 3, 4), keepdim=True) / weight.sum(dim=(2, 3, 4), keepdim=True).clamp_min(1e-12)
        return torch.where(weight > 0, known, mean)
    # With ceil_mode, an odd side keeps its last layer.
    coarse = _pull(F.avg_pool3d(weighted, 2, ceil_mode=True), F.avg_pool3d(weight, 2, ceil_mode=True))
    filled = F.interpolate(coarse, size=weighted.shape[2:], mode="trilinear", align_corners=False)
    return torch.where(weight > 0, known, filled)


def measure_reconstruction(
    restored: Mapping[str, Tensor], view: Tensor, hidden: Tensor, training_median: float, inside: Tensor | None = None
) -> dict[str, float]:
    """L1 over masked voxels of each network and of three trivial baselines, and the student's ratio to the best of them.

    `restored` holds the views (n 1 X Y Z) as restored by the student and, if there is one, by the teacher (key `teacher`, and
    `teacher_ratio` in the result); `view` is n 1 X Y Z, `hidden` n X Y Z on voxels. `inside` (n X Y Z) are the voxels of the
    scan, default all: padding is neither measured nor filled from.
    """
    view = view.float()
    outside = torch.zeros_like(hidden) if inside is None else ~inside
    masked, unseen = (hidden & ~outside)[:, None], (hidden | outside)[:, None]

    def measure(answer: Tensor) -> float:
        return (answer.float() - view).abs()[masked].mean().item()

    visible_mean = torch.where(unseen, 0.0, view).sum(dim=(1, 2, 3, 4)) / (~unseen).sum(dim=(1, 2, 3, 4)).clamp_min(1)
    trivial = {
        "visible_mean": measure(visible_mean[:, None, None, None, None].expand_as(view)),
        "training_median": measure(torch.full_like(view, training_median)),
        "push_pull": measure(fill_from_visible(view, unseen[:, 0])),
    }
    errors = {name: measure(answer) for name, answer in restored.items()}
    best = max(min(trivial.values()), 1e-12)
    ratios = {"ratio": errors["student"] / best} | ({"teacher_ratio": errors["teacher"] / best} if "teacher" in errors else {})
    return {**errors, **trivial, "best": min(trivial.values()), **ratios}


def measure_features(features: Tensor) -> dict[str, float]:
    """Mean standard deviation over rows, and effective rank (exponential of the singular values' entropy), of n x C features."""
    centred = features.float() - features.float().mean(dim=0)
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum().clamp_min(1e-12)
    return {"std": centred.std(dim=0).mean().item(), "effective_rank": math.exp(entropy(shares).item())}


def measure_attention(attention: Tensor, brightness: Tensor) -> dict[str, float]:
    """How Att (n N) is spread: entropy / ln N, rank correlation with the units' mean intensity (n N), share inside the body.

    `body_units` is the share of units that lie in the body, what uniform attention would give.
    """
    shares = attention.float() / attention.float().sum(dim=1, keepdim=True)
    body = brightness > BODY
    return {
        "entropy": (entropy(shares).mean() / math.log(shares.shape[1])).item(),
        "brightness": _rank_correlation(shares, brightness),
        "body_share": (shares * body).sum(dim=1).mean().item(),
        "body_units": body.float().mean().item(),
    }


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    centred = [r - r.mean(dim=1, keepdim=True) for r in (_rank(a), _rank(b))]
    norm = (centred[0].square().sum(dim=1) * centred[1].square().sum(dim=1)).sqrt().clamp_min(1e-12)
    return ((centred[0] * centred[1]).sum(dim=1) / norm).mean().item()


def _rank(values: Tensor) -> Tensor:
    # Ties share their mean rank: air is one large tie, and any order within it would show up as a correlation.
    ascending, values = values.sort(dim=1).values.contiguous(), values.contiguous()
    below = torch.searchsorted(ascending, values)
    return (below + torch.searchsorted(ascending, values, right=True)).double() / 2


def average_units(view: Tensor, unit: int) -> Tensor:
    """Mean intensity of each unit, n N, of views n 1 X Y Z."""
    return F.avg_pool3d(view.float(), unit)[:, 0].flatten(1)


def measure_window_heads(attention: StageAttention, spacing: float) -> dict[str, float]:
    """Diversity of a stage's heads [Xie et al., CVPR 2023]: entropy (nats) and mean distance (mm) of each head's attention,
    their spread over heads, and the generalised Jensen-Shannon divergence between heads.
    """
    probabilities = attention.probabilities.float()
    windows = len(attention.valid)
    valid = attention.valid.repeat(len(probabilities) // windows, 1)
    distances = torch.cdist(attention.positions.float(), attention.positions.float()) * spacing
    queries = valid[:, None, :].expand(probabilities.shape[:3])
    entropies = _mean_by_head(entropy(probabilities), queries)
    reach = _mean_by_head((probabilities * distances).sum(dim=-1), queries)
    mixed = entropy(probabilities.mean(dim=1)) - entropy(probabilities).mean(dim=1)
    return _describe_heads(entropies, reach, mixed[valid].mean().item())


def measure_cls_heads(attention: Tensor, places: Tensor) -> dict[str, float]:
    """The same for the semantic attention's [CLS] row (n H N); distance is from the attention's own centroid.

    `places` are the units' centres in mm, N x 3.
    """
    shares = attention.float() / attention.float().sum(dim=-1, keepdim=True)
    # No matrix product: under autocast it would round millimetres to bfloat16.
    centroids = (shares[..., None] * places).sum(dim=-2)
    distances = torch.cdist(centroids, places[None].expand(len(shares), -1, -1))
    mixed = entropy(shares.mean(dim=1)) - entropy(shares).mean(dim=1)
    return _describe_heads(entropy(shares).mean(dim=0), (shares * distances).sum(dim=-1).mean(dim=0), mixed.mean().item())


def _mean_by_head(values: Tensor, queries: Tensor) -> Tensor:
    return (values * queries).sum(dim=(0, 2)) / queries.sum(dim=(0, 2))


def _describe_heads(entropies: Tensor, distances: Tensor, divergence: float) -> dict[str, float]:
    return {
        "entropy": entropies.mean().item(),
        "entropy_spread": entropies.std(unbiased=False).item(),
        "distance_mm": distances.mean().item(),
        "distance_spread": distances.std(unbiased=False).item(),
        "js": divergence,
    }
