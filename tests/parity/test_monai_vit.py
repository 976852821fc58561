"""The ViT equals MONAI's of the same sizes with its weights carried over, after each quarter of the blocks, the [CLS] token too."""

from __future__ import annotations

import pytest
import torch

from dagman.model import ViTEncoder, ViTShape

monai = pytest.importorskip("monai.networks.nets")


def _carry_over(theirs, ours: ViTEncoder) -> None:
    weights = theirs.state_dict()
    # Theirs takes a raw view, ours standardises it; their rearrangement has the channel last, which is one here.
    linear = weights.pop("patch_embedding.patch_embeddings.1.weight")
    taken = {"patch_projection.weight": linear, "patch_projection.bias": weights.pop("patch_embedding.patch_embeddings.1.bias")}
    taken["cls"] = weights.pop("cls_token").flatten()
    taken["positions"] = weights.pop("patch_embedding.position_embeddings")[0].T.reshape(ours.positions.shape)
    names = {"attn.qkv": "qkv", "attn.out_proj": "proj", "mlp.linear1": "mlp.linear1", "mlp.linear2": "mlp.linear2"}
    names |= {"norm1": "norm1", "norm2": "norm2"}
    for number in range(4):
        for name, own in names.items():
            for kind in ("weight", "bias"):
                taken[f"stages.{number}.0.{own}.{kind}"] = weights.pop(f"blocks.{number}.{name}.{kind}")
    taken |= {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}
    ours.load_state_dict(taken, strict=True)


def test_it_equals_monais_vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "mlp_dim": 192, "num_layers": 4, "num_heads": 4, "qkv_bias": True}
    theirs = monai.ViT(1, (64, 32, 64), (16, 16, 16), proj_type="perceptron", classification=True, num_classes=2, **sizes).eval()
    ours = ViTEncoder(ViTShape(embed=48, depths=(1, 1, 1, 1), heads=(4, 4, 4, 4), view=64)).eval()
    # A grid that is no cube, so that axes in the wrong order are seen.
    ours.positions = torch.nn.Parameter(torch.empty(48, 4, 2, 4))
    _carry_over(theirs, ours)
    view = torch.rand(2, 1, 64, 32, 64)
    with torch.no_grad():
        _, states = theirs(view)
        encoded = ours.encode(view)
    for mine, reference in zip(encoded.maps, states, strict=True):
        difference = (mine.flatten(2).transpose(1, 2) - reference[:, 1:]).abs().max().item()
        assert difference < 1e-5, difference
    assert torch.allclose(encoded.cls, states[-1][:, 0], atol=1e-5)
