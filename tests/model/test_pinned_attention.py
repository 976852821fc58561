"""Proves that torch's fused attention never takes the backends of cuDNN or flash: in every network and head, with masks too.

Networks are built on the device "meta", which computes no numbers: it stands for all devices but a CPU.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dagman
from dagman.devices import pin_attention
from dagman.model import window_attention
from dagman.model.backbone import BACKBONES
from dagman.settings import load_settings, resolve_settings
from dagman.training import assembly

PINNED = {"flash": False, "mem_efficient": True, "math": True, "cudnn": False}
_SIDE = 64
"""Of a view; that of the smallest that every network takes."""
CALLERS = {"model/semantic_attention.py": 1, "model/window_attention.py": 2, "export/vit_graph.py": 1}
"""Files that call torch's fused attention, and how often; the graph that is exported has neither a mask nor a gradient."""


@pytest.fixture
def seen(monkeypatch) -> list[dict[str, bool]]:
    """The backends that were enabled at each call of torch's fused attention."""
    found: list[dict[str, bool]] = []
    plain = F.scaled_dot_product_attention

    def attend(*args, **kwargs):
        found.append({name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in PINNED})
        return plain(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    # There is no autocast for the device "meta".
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    return found


def _settle(size: str, *assignments: str):
    return resolve_settings(
        load_settings(size, "dagman", assignments=[f"view.side={_SIDE}", "projector.prototypes=64", *assignments])[0]
    )[0]


@pytest.mark.parametrize(
    ("size", "recomputes"), [("tiny", 0), ("tiny", 4), ("tiny-vit", 4), ("tiny-resnet", 0), ("tiny-resenc", 0)]
)
def test_every_network_and_head_attends_by_the_efficient_or_the_plain_backend(seen, size, recomputes):
    if size.endswith("resenc"):
        pytest.importorskip("dynamic_network_architectures", reason="needs the extra `cnn`")
    with torch.device("meta"):
        student, teacher = assembly.build_networks(_settle(size, f"train.recompute={recomputes}"))
        assert teacher is not None
        views, blanked = torch.rand(2, 1, _SIDE, _SIDE, _SIDE), torch.ones(2, *(_SIDE // 2,) * 3, dtype=torch.bool)
        draws = torch.rand(student.encoder.branches, 2) if student.encoder.branches else None
        outputs = student(views, blanked, torch.ones(2, (_SIDE // 16) ** 3, dtype=torch.bool), draws, count=10)
        assert outputs.reconstruction is not None
        sum([x.sum() for x in outputs.projections.values()], outputs.reconstruction.sum()).backward()
        with torch.no_grad():
            teacher.attend_encoded(teacher.encode(views, blanked))
            teacher.attend_heads(views)
            if teacher.semantic_attention is not None:
                teacher.semantic_attention(teacher.encode(views).maps[2])
    assert len(seen) > 3
    assert all(one == PINNED for one in seen)
    assert torch.backends.cuda.flash_sdp_enabled(), "outside of our calls all is as the user has set it"


def test_windows_with_their_mask_attend_by_the_efficient_or_the_plain_backend(seen, monkeypatch):
    monkeypatch.setattr(window_attention, "pin_attention", lambda device: pin_attention(torch.device("cuda")))
    q, k, v = (torch.rand(6, 2, 8, 4) for _ in range(3))
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[1, :4, 4:] = True
    bias = torch.rand(2, 8, 8)
    attended = window_attention.attend_windows_fused(q, k, v, bias, mask, 0.5)
    torch.testing.assert_close(attended, window_attention.attend_windows(q, k, v, bias, mask, 0.5))
    assert seen == [PINNED] * 2


def test_a_cpu_keeps_its_own_fused_kernel(seen):
    with pin_attention(torch.device("cpu")):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_no_other_file_calls_torchs_fused_attention():
    root = Path(dagman.__file__).parent
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    counts = {name: len(re.findall(r"scaled_dot_product_attention\(|MultiheadAttention\(", text)) for name, text in texts.items()}
    assert {name: count for name, count in counts.items() if count} == CALLERS
    assert set(BACKBONES) == {"swin", "vit", "monai-swin", "resenc", "resnet3d", "segresnet"}, "a further one is to be tested here"
