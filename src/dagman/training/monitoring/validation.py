"""Evaluation on fixed validation views: the forward passes of a step, without learning, and the monitors' measurements."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dagman.method.masking import expand_units
from dagman.method.networks import Network, Outputs, unit_grid
from dagman.method.noise import PATCHES_PER_UNIT, count_noise_draws
from dagman.method.step import Method, TeacherOutputs, ViewPair, find_inside_units, find_inside_voxels, teacher_forward
from dagman.method.targets import Targets
from dagman.model.backbone import UNIT
from dagman.model.intensity import to_unit_ranges
from dagman.settings import Settings
from dagman.training.draws import draw_masking, draw_noise
from dagman.training.monitoring import monitors
from dagman.training.views import ViewDataset, sample_intensities, validation_places

SHOWN = 4
"""Views kept in the gallery and used for head diversity."""


class Validation:
    """Fixed pairs of views, masks and noise, drawn once for a run."""

    def __init__(self, settings: Settings, dataset: ViewDataset, method: Method, device: torch.device) -> None:
        # Both views are evaluated, even if the losses use only u.
        self.settings, self.method = settings, dataclasses.replace(method, symmetric=True)
        self.spacing = float(dataset.store.preparation.spacing)
        count = settings.train.monitor_views
        places = validation_places(dataset, count)
        item = dataset.read_pairs(places, "validation", range(count // 2))
        # Not `places`: a scan that cannot be read was replaced.
        self.scans = [crop.scan for pair in item["places"] for crop in pair]
        self.modalities = dataset.modalities
        self.patients = {row.id: row.patient for row in dataset.store.rows if row.id in set(self.scans)}
        stored = torch.stack([item["u"], item["v"]], dim=1).flatten(0, 1)
        self.views = to_unit_ranges(stored, item["range"].repeat_interleave(2, dim=0)).to(device)
        self.grid = unit_grid((settings.view.side,) * 3)
        masking = draw_masking(settings.seed, "validation", range(count), math.prod(self.grid)).to(device)
        noise = draw_noise(settings.seed, "validation", range(count), count_noise_draws(self.grid, settings.teacher.granularity))
        self.pair = ViewPair(
            views=self.views.unflatten(0, (-1, 2)),
            masking=masking.unflatten(0, (-1, 2)),
            noise=noise.to(device).unflatten(0, (-1, 2)),
            drop_path=torch.ones(0, count // 2, 2, device=device),
            inside=item["inside"],
        )
        self.inside = item["inside"].flatten(0, 1)
        self.brightness = monitors.average_units(self.views, UNIT)
        self.median = sample_intensities(dataset).median().item()
        x, y, z = (torch.arange(side, device=device) for side in self.grid)
        self.places = (torch.cartesian_prod(x, y, z).float() + 0.5) * UNIT * self.spacing

    @torch.no_grad()
    def evaluate(
        self, student: Network, teacher: Network | None, targets: Targets, scheduled: float
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A row for `monitors.jsonl`, and the arrays of the gallery.

        `attention`, `features` and `diversity` are those of the teacher, with those of the student in `student`; without a teacher,
        they are those of the student. `reconstruction` has the errors of both, with the student's reconstruction head.
        """
        views = self.views
        outputs = self._pass_teacher(teacher)
        masked = outputs.masked.flatten(0, 1)
        row, gallery = self._describe(teacher if teacher is not None else student)
        if teacher is not None:
            row["student"], _ = self._describe(student)
        gallery |= {
            "view": views[self.shown],
            "hidden": masked[self.shown].to(torch.uint8),
            "spacing": torch.tensor([self.spacing]),
        }
        row["masks"] = self._measure_masks(masked)
        patches, voxels = (expand_units(masked, self.grid, factor) for factor in (PATCHES_PER_UNIT, UNIT))
        answers = self._pass_student(student, patches, masked)
        if answers.reconstruction is not None and student.reconstruction is not None:
            restored = {"student": answers.reconstruction}
            if teacher is not None:
                passes = zip(self._cut(views), self._cut(patches), strict=True)
                restored["teacher"] = torch.cat([student.reconstruction(teacher.encoder(v, p)[3]) for v, p in passes])
            inside = find_inside_voxels(self.inside, voxels)
            row["reconstruction"] = monitors.measure_reconstruction(restored, views, voxels, self.median, inside)
            gallery["reconstruction"] = answers.reconstruction[self.shown].float()
        for name, logits in outputs.projections.items():
            if not logits.numel():
                continue
            flat = logits.flatten(0, -2).float()
            target = targets.compute(name, flat, targets.temperature(name, flat, scheduled)).view_as(logits)
            if name != "ampd":
                target = target.flip(1).flatten(0, 1)
            measured = monitors.measure_targets(target, answers.projections[name], self.method.student_temperature)
            row.setdefault("projectors", {})[name] = measured
        return row, {
            name: value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
            for name, value in gallery.items()
        }

    def _cut(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split the values of all views into micro-batches, so that memory is that of training."""
        return values.split(int(self.settings.train.micro_batch))

    def _pass_teacher(self, teacher: Network | None) -> TeacherOutputs:
        pair, size = self.pair, int(self.settings.train.micro_batch) // 2
        outputs = [
            teacher_forward(teacher, pair.take(slice(first, first + size)), self.method)
            for first in range(0, len(pair.views), size)
        ]
        return TeacherOutputs(
            masked=torch.cat([one.masked for one in outputs]),
            projections={name: torch.cat([one.projections[name] for one in outputs]) for name in outputs[0].projections},
        )

    def _pass_student(self, student: Network, patches: Tensor, masked: Tensor) -> Outputs:
        outputs = [student(*part) for part in zip(*map(self._cut, (self.views, patches, masked)), strict=True)]
        restored = [one.reconstruction for one in outputs if one.reconstruction is not None]
        return Outputs(
            projections={name: torch.cat([one.projections[name] for one in outputs]) for name in outputs[0].projections},
            reconstruction=torch.cat(restored) if restored else None,
        )

    @property
    def shown(self) -> list[int]:
        """Indices of the gallery's views: u of each pair first, so that they come from as many scans as possible."""
        count = len(self.views)
        return [*range(0, count, 2), *range(1, count, 2)][:SHOWN]

    @property
    def sources(self) -> list[dict[str, str]]:
        """Scan, patient and modality of each view of the gallery."""
        shown = [self.scans[view] for view in self.shown]
        return [{"scan": scan, "patient": self.patients.get(scan, ""), "modality": self.modalities[scan]} for scan in shown]

    def _measure_masks(self, masked: Tensor) -> dict[str, float]:
        """The share of the units inside scans that is masked, and the requested share."""
        box = find_inside_units(self.inside)
        inside = int((box[:, 1] - box[:, 0]).prod(dim=1).sum())
        units = math.prod(self.grid)
        return {"share": int(masked.sum()) / inside, "wanted": self.method.shares.count(units).hidden / units}

    def _describe(self, network: Network) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Attention, features and head diversity of one network on clean views, and its attention for the gallery."""
        row: dict[str, Any] = {}
        gallery: dict[str, Tensor] = {}
        if network.semantic is not None:
            attention = torch.cat([network.attend(v[None]) for v in self.views])
            row["attention"] = monitors.measure_attention(attention, self.brightness)
            gallery["attention"] = attention[self.shown]
        clean = torch.cat([network.encoder(v[None])[3] for v in self.views])
        row["features"] = monitors.measure_features(clean.flatten(2).transpose(1, 2).flatten(0, 1))
        row["diversity"], heads = self._compare_heads(network)
        if heads is not None:
            gallery["attention_heads"] = heads
        return row, gallery

    def _compare_heads(self, network: Network) -> tuple[dict[str, Any], Tensor | None]:
        diversity: dict[str, dict[str, float]] = {}
        shown = self.views[self.shown]
        for view in shown:
            for stage, attention in enumerate(network.encoder.attention_of(view[None]), start=1):
                found = monitors.measure_window_heads(attention, self.spacing)
                mean = diversity.setdefault(f"stage{stage}", dict.fromkeys(found, 0.0))
                for key, value in found.items():
                    mean[key] += value / len(shown)
        if network.semantic is None:
            return diversity, None
        maps = network.attend_heads(shown).float()
        on_units = tuple(maps.shape[2:]) == tuple(self.grid)
        places = self.places if on_units else _place_tokens(maps, self.settings.view.side * self.spacing)
        heads = maps.flatten(2)
        diversity["sa"] = monitors.measure_cls_heads(heads, places)
        return diversity, heads if on_units else None


def _place_tokens(features: Tensor, side_mm: float) -> Tensor:
    axes = [(torch.arange(n, device=features.device) + 0.5) * side_mm / n for n in features.shape[2:]]
    return torch.cartesian_prod(*axes)
