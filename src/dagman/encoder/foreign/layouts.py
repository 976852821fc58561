"""Layouts in which other programs store the weights of a 3D Swin: names, additional heads, and preprocessing.

Each layout is taken from the public code that writes it; sources are given with the numbers.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dagman.encoder.foreign.files import CONVERT
from dagman.errors import EncoderError
from dagman.records.counts import count_noun

Order = tuple[tuple[int, int, int], ...]
_V2: Order = tuple((i, j, k) for i, j, k in itertools.product((0, 1), repeat=3))
_FIRST: Order = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
ORDERS: Mapping[str, Order] = {
    "mergingv2": _V2,
    "merging": (*_FIRST, (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "smit": (*_FIRST, (0, 1, 1), (1, 0, 1), (1, 1, 1)),
}
"""Order in which patch merging concatenates its 2^3 tokens: the two `downsample` of MONAI, and that of SMIT's authors."""
REPEATING = "merging-before-fix"
"""MONAI's original `merging`, which used two neighbours twice and two never; this cannot be expressed as an order of columns."""
MERGINGS = (*ORDERS, REPEATING)

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|backbone)\.)+")
_DAE = re.compile(r"^encoder\.(layers[1-4]\.0\.|patch_embed\.)(?:0\.)?")
"""MONAI's public SSL weights (`filter_swinunetr`) have another prefix, and one more level in the names of stages."""
_SWIN = "swinViT.patch_embed.proj.weight"
_UNETR = r"(?:encoder(?:1|2|3|4|10)|decoder[1-5]|out)\."
_MONAI_HEADS = rf"(?:rotation_(?:pre|head)|contrastive_(?:pre|head)|conv)\.|encoder\.(?:mask_token$|norm\.)|{_UNETR}"
_VOCO_HEADS = r"(?:student|teacher)\.layer"
_DINO_HEADS = r"head\.(?:mlp\.\d+|last_layer)\."
_SUPREM_HEADS = r"(?:organ_embedding|controller\.|GAP\.|precls_conv\.|text_to_vision\.)"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The preprocessing with which weights were trained; the orientation is always RAS.

    Attributes:
        spacing: Voxel size in mm.
        low, high: HU that become 0 and 1.
        view: Side of the views in voxels.
        source: Where this is stated.
    """

    spacing: float
    low: float
    high: float
    view: int
    source: str


STATED = Preparation(spacing=2.0, low=-1000.0, high=500.0, view=64, source="as stated")
"""Base for stated preprocessing: its spacing and HU window are replaced, and the side of views is a default."""
_SSL = Preparation(
    spacing=1.5, low=-1000.0, high=1000.0, view=96, source="MONAI's SwinUNETR pretraining, whose slices of 2 mm become 1.5 mm"
)
_VOCO = Preparation(spacing=1.5, low=-175.0, high=250.0, view=64, source="Large-Scale-Medical, Self-supervised/voco_train.py")
_CORALBAY = Preparation(
    spacing=1.5, low=-1000.0, high=1000.0, view=96, source="CoralBay's model card, which takes any window and states no orientation"
)
_MHUB = Preparation(
    spacing=1.5, low=-500.0, high=500.0, view=128, source="MHub msk_smit_lung_gtv, whose slices of 2 mm become 1.5 mm"
)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """How the weights of a file were mapped. Weights that are missing or left over are errors, and are not reported here.

    Attributes:
        layout: Name of the layout.
        merging: Kind of patch merging; empty if there is none.
        matched: Number of weights that were loaded.
        left_out: Number of weights that were skipped on purpose, by the part of the network to which they belong.
        preparation: Description of the preprocessing.
    """

    layout: str
    merging: str
    matched: int
    left_out: dict[str, int]
    preparation: str

    def __str__(self) -> str:
        parts = ", ".join(f"{part} ({count})" for part, count in self.left_out.items()) or "nothing"
        weights = count_noun(self.matched, "weight")
        whole = f"{self.layout}: {weights} matched, none missing, none left over; left out on purpose: {parts}"
        return "; ".join(filter(None, (whole, self._judge_merging(), self.preparation)))

    def _judge_merging(self) -> str:
        if self.merging != "merging":
            return f"patch merging {self.merging}" if self.merging else ""
        old = f"for weights of the years when it repeated tokens, state downsample={REPEATING}"
        return f"patch merging as MONAI's is now ({old})"


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignWeights:
    """Weights of a file under MONAI's names.

    Attributes:
        state: The weights.
        layout: Name of the layout.
        merging: Kind of patch merging of the file.
        left_out: Number of weights that were skipped on purpose, by part.
        preparation: Their preprocessing; None if it is unknown and the user has to state it.
    """

    state: dict[str, Tensor] = field(repr=False)
    layout: str
    merging: str
    left_out: dict[str, int]
    preparation: Preparation | None


def split_statement(text: str) -> tuple[Path, dict[str, str]]:
    """Split `FILE:spacing=1.5:low=-175:high=250` into the file and the stated values."""
    parts = text.split(":")
    stated = list(itertools.takewhile(lambda part: re.fullmatch(r"[a-z]+=.*", part), reversed(parts[1:])))
    path = ":".join(parts[: len(parts) - len(stated)])
    return Path(path), dict(part.split("=", 1) for part in reversed(stated))


def recognise(tensors: dict[str, Tensor], holder: str, path: Path) -> ForeignWeights:
    """Recognise the layout of a file, and return the weights of its Swin under MONAI's names; known heads are skipped.

    Raises:
        EncoderError: The layout is unknown, or weights do not belong to any of its known parts.
    """
    named = {WRAPPERS.sub("", name): value.float() for name, value in tensors.items()}
    named = _drop_holder(named)
    if len(named) < len(tensors):
        raise EncoderError(
            "holds two weights with the same name once prefixes such as `module.` are removed", where=path, do=CONVERT
        )
    if "transformer.patch_embed.proj.weight" in named:
        return _recognise_smit(named, holder, path)
    named = {_DAE.sub(r"swinViT.\1", name): value for name, value in named.items()}
    prefix = next((start for start in ("swinViT.", "swin.", "") if f"{start}patch_embed.proj.weight" in named), None)
    if prefix is None:
        what = f"holds no SwinTransformer of MONAI, nor one of SMIT or VoCo (no patch_embed.proj.weight; first is {min(named)})"
        raise EncoderError(what, where=path, do=CONVERT)
    own = re.compile(re.escape(prefix) + r"(?:patch_embed|layers[1-4]c?)\.")
    layout, heads, preparation = "MONAI's Swin", _MONAI_HEADS, None
    if any(name.startswith(("rotation_head.", "contrastive_head.")) for name in named):
        layout, preparation = "MONAI's SSLHead", _SSL
    elif any(re.match(_VOCO_HEADS, name) for name in named):
        layout, heads, preparation = "VoCo", f"{_VOCO_HEADS}|{_UNETR}", _VOCO
    elif any(re.match(_DINO_HEADS, name) for name in named) or _is_named(path, "coralbay"):
        layout, heads, preparation = "CoralBay", f"{_DINO_HEADS}|{_MONAI_HEADS}", _CORALBAY
    elif any(re.match(_SUPREM_HEADS, name) for name in named):
        layout, heads = "SuPreM", f"{_SUPREM_HEADS}|{_UNETR}"
    state, left_out = part_weights(named, own, re.compile(heads), path)
    state = {name.removeprefix(prefix).replace(".mlp.fc", ".mlp.linear"): value for name, value in state.items()}
    return ForeignWeights(state=state, layout=layout, merging="merging", left_out=left_out, preparation=preparation)


def _drop_holder(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that a class of transformers adds: the name of the attribute that contains the Swin and its heads."""
    holders = {name.removesuffix(_SWIN) for name in named if name.endswith(f".{_SWIN}")}
    return {name.removeprefix(holder): value for holder in holders for name, value in named.items()} if len(holders) == 1 else named


def _is_named(path: Path, model: str) -> bool:
    """Check whether the `config.json` of transformers next to a file mentions a model."""
    config = path.with_name("config.json")
    return config.is_file() and model in config.read_text(encoding="utf-8", errors="ignore").lower()


def _recognise_smit(named: dict[str, Tensor], holder: str, path: Path) -> ForeignWeights:
    # These norms are for skip connections, which are taken before each merging; dagman's maps are taken after it, without norms.
    heads = re.compile(
        rf"transformer\.norm[0-3]\.|(?:student_|teacher_)?head\.|(?:transformer\.)?(?:mask_token|masked_embed)$|{_UNETR}"
    )
    state, left_out = part_weights(named, re.compile(r"transformer\.(?:patch_embed|layers\.[0-3])\."), heads, path)
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("transformer.").replace(".mlp.fc", ".mlp.linear")
        renamed[re.sub(r"^layers\.(\d)", lambda match: f"layers{int(match[1]) + 1}.0", name)] = value
    classes = named.get("out.conv.conv.weight")
    # The only public model with two classes. For the pretraining itself, no public code states the preprocessing.
    known = _MHUB if holder != "student" and classes is not None and classes.shape[0] == 2 else None
    return ForeignWeights(state=renamed, layout="SMIT", merging="smit", left_out=left_out, preparation=known)


def part_weights(
    named: dict[str, Tensor], own: re.Pattern[str], heads: re.Pattern[str], path: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Select the weights of the encoder, and count those of each known head, which are skipped.

    Raises:
        EncoderError: There are weights that belong to neither.
    """
    state = {name: value for name, value in named.items() if own.match(name)}
    others = sorted(named.keys() - state.keys())
    unknown = [name for name in others if not heads.match(name)]
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        text = f"{count_noun(len(state), 'weight')} matched; {count_noun(len(unknown), 'is', 'are')} left over: {listed}"
        do = "Give a file whose other parts are known, or the encoder's weights alone"
        raise EncoderError(text, where=path, do=do)
    counts = Counter(".".join(name.split(".")[: 2 if name.startswith("transformer.") else 1]) for name in others)
    return state, dict(sorted(counts.items()))


def order_columns(state: dict[str, Tensor], merging: str) -> dict[str, Tensor]:
    """Reorder the columns of each reduction, and its norm, to the order of MONAI's `mergingv2`; the values are not changed."""
    given = ORDERS[merging]
    source = torch.tensor([given.index(place) for place in ORDERS["mergingv2"]])
    ordered = dict(state)
    for name, value in state.items():
        if re.search(r"\.downsample\.(?:reduction|norm)\.", name) and value.shape[-1] % 8 == 0:
            ordered[name] = value.unflatten(-1, (8, -1)).index_select(-2, source).flatten(-2).contiguous()
    return ordered
