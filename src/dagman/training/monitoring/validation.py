"""A look at the fixed validation views: runs the networks as the step does, without learning, and measures them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dagman.method.masking import expand_units
from dagman.method.networks import UNIT, Network, unit_grid
from dagman.method.noise import PATCHES_PER_UNIT, count_noise_draws, drop_input
from dagman.method.step import Method
from dagman.method.targets import Targets
from dagman.model.intensity import to_unit_ranges
from dagman.settings import Settings
from dagman.training.draws import draw_masking, draw_noise
from dagman.training.monitoring import monitors
from dagman.training.views import ViewDataset, sample_intensities, validation_places

SHOWN = 4
"""Views kept in the gallery, and looked at for head diversity."""


class Validation:
    """Fixed views, masks and noise, drawn once for a run."""

    def __init__(self, settings: Settings, dataset: ViewDataset, method: Method, device: torch.device) -> None:
        self.settings, self.method = settings, method
        self.spacing = float(dataset.store.preparation.spacing)
        views = settings.train.monitor_views
        item = dataset.read(validation_places(dataset, views))
        # u and v of one scan side by side, as in the step: rows i and i + n/2 are a pair.
        self.views = torch.cat([to_unit_ranges(item[name], item["range"]) for name in ("u", "v")]).to(device)
        self.grid = unit_grid((settings.view.side,) * 3)
        units = self.grid[0] * self.grid[1] * self.grid[2]
        self.masking = draw_masking(settings.seed, "validation", range(views), units).to(device)
        noise = draw_noise(settings.seed, "validation", range(views), count_noise_draws(self.grid, settings.teacher.granularity))
        self.dropped = drop_input(noise.to(device), self.grid, method.noise, method.granularity)
        self.brightness = monitors.average_units(self.views, UNIT)
        self.median = sample_intensities(dataset).median().item()
        x, y, z = (torch.arange(side, device=device) for side in self.grid)
        self.places = (torch.cartesian_prod(x, y, z).float() + 0.5) * UNIT * self.spacing

    @torch.no_grad()
    def look(
        self, student: Network, teacher: Network | None, targets: Targets, scheduled: float
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A row for `monitors.jsonl` and the arrays of the gallery."""
        views, method = self.views, self.method
        keeper = teacher if teacher is not None else student
        row: dict[str, Any] = {}
        gallery: dict[str, Any] = {"view": views[:SHOWN], "spacing": torch.tensor([self.spacing])}
        attention = None
        if keeper.semantic_attention is not None:
            attention = torch.cat([keeper.attend(v[None]) for v in views])
            row["attention"] = monitors.watch_attention(attention, self.brightness)
            gallery["attention"] = attention[:SHOWN]
        hidden = method.masking(attention if method.needs_attention else None, self.grid, method.counts, self.masking)
        gallery["hidden"] = hidden[:SHOWN].to(torch.uint8)
        student_says = student(views, expand_units(hidden, self.grid, PATCHES_PER_UNIT), hidden)
        if student_says.reconstruction is not None:
            voxels = expand_units(hidden, self.grid, UNIT)
            row["reconstruction"] = monitors.watch_reconstruction(student_says.reconstruction, views, voxels, self.median)
            gallery["reconstruction"] = student_says.reconstruction[:SHOWN].float()
        if teacher is not None and len(teacher.projectors):
            teacher_says = teacher(views, self.dropped, hidden)
            row["projectors"] = {}
            crossed = torch.arange(len(views), device=views.device).roll(-(len(views) // 2))
            for name, field in (("ampd", "patches"), ("aitd", "cls"), ("gitd", "image")):
                logits = getattr(teacher_says, field)
                if logits is None:
                    continue
                goals = targets.apply(name, logits.float(), targets.temperature(name, logits, scheduled))
                goals = goals if name == "ampd" else goals[crossed]
                tau = method.student_temperature
                row["projectors"][name] = monitors.watch_targets(goals, getattr(student_says, field), tau)
        clean = torch.cat([keeper.encoder(v[None])[3] for v in views])
        row["features"] = monitors.watch_features(clean.flatten(2).transpose(1, 2).flatten(0, 1))
        row["diversity"], heads = self._compare_heads(keeper)
        if heads is not None:
            gallery["attention_heads"] = heads
        return row, {
            name: value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
            for name, value in gallery.items()
        }

    def _compare_heads(self, network: Network) -> tuple[dict[str, Any], Tensor | None]:
        diversity: dict[str, dict[str, float]] = {}
        for view in self.views[:SHOWN]:
            for stage, attention in enumerate(network.encoder.attention_of(view[None]), start=1):
                found = monitors.watch_window_heads(attention, self.spacing)
                mean = diversity.setdefault(f"stage{stage}", dict.fromkeys(found, 0.0))
                for key, value in found.items():
                    mean[key] += value / min(SHOWN, len(self.views))
        if network.semantic is None or network.semantic_attention is None:
            return diversity, None
        features = network.encoder(self.views[:SHOWN], stages=network.semantic.stage)[-1]
        heads = network.semantic_attention.attend(features)
        places = self.places if network.semantic.stage == 3 else _place_tokens(features, self.settings.view.side * self.spacing)
        diversity["sa"] = monitors.watch_cls_heads(heads.float(), places)
        return diversity, heads.float() if network.semantic.stage == 3 else None


def _place_tokens(features: Tensor, side_mm: float) -> Tensor:
    axes = [(torch.arange(n, device=features.device) + 0.5) * side_mm / n for n in features.shape[2:]]
    return torch.cartesian_prod(*axes)
