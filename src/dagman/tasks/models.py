"""What a user may name as a MODEL, and how it is made: a pretrained encoder, a fresh one, or a baseline.

Every network is an `Encoder` with four feature maps at strides 4, 8, 16, 32, so that all are given the same crops, pooled in the
same way and fine-tuned by the same loop; what else is compared (radiomics:size, pixels, histogram) is in
`dagman.tasks.inputs.descriptors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dagman.devices import choose_device, choose_precision
from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig, read_config, read_weights, write_encoder
from dagman.encoder.loading import load_encoder
from dagman.errors import EncoderError, MissingExtraError, TaskError
from dagman.method.networks import Network
from dagman.model import SwinShape
from dagman.randomness import address
from dagman.records.names import nearest_name
from dagman.settings.presets import list_presets

Kind = Literal["encoder", "scratch", "monai", "resnet3d", "radiomics", "pixels", "histogram"]
NETWORKS = ("encoder", "scratch", "monai", "resnet3d")
RESNETS = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}
"""Blocks of each stage; 50 has bottlenecks."""
_CONVERT = (
    "Convert it once, where you trust it: "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in model.swinViT.state_dict().items()}, 'weights.safetensors')"
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What was named: its kind, the rest of the name, and the name itself."""

    kind: Kind
    argument: str
    text: str

    @property
    def name(self) -> str:
        """How tables and figures call it: a folder or file by its own name, without its path; else what was written."""
        if self.kind == "monai":
            return f"monai:{Path(self.argument).name}"
        return Path(self.argument).resolve().name if self.kind == "encoder" else self.text

    @property
    def has_network(self) -> bool:
        """Whether it has weights, and so can be fine-tuned."""
        return self.kind in NETWORKS


def parse_model(text: str | Path) -> ModelSpec:
    """A run or encoder folder, `scratch:SIZE[:SEED]`, `monai:PATH`, `resnet3d:SIZE[:SEED]`, or one of `DESCRIPTORS` by name.

    Nothing is loaded. Raises TaskError for anything else, naming the nearest.
    """
    text = str(text)
    head, _, rest = text.partition(":")
    first = rest.partition(":")[0]
    choices = _list_choices()
    if head in ("scratch", "resnet3d"):
        allowed = [choice.partition(":")[2] for choice in choices if choice.startswith(f"{head}:")]
        if first in allowed:
            return ModelSpec(kind=cast(Kind, head), argument=rest, text=text)
    elif head == "monai" and rest:
        if not Path(rest).is_file():
            raise TaskError("does not exist", where=text, do="Give a safetensors file with MONAI's weights")
        return ModelSpec(kind="monai", argument=rest, text=text)
    elif text in ("pixels", "histogram"):
        return ModelSpec(kind=cast(Kind, text), argument="", text=text)
    elif text == "radiomics:size":
        return ModelSpec(kind="radiomics", argument="size", text=text)
    elif Path(text).is_dir():
        return ModelSpec(kind="encoder", argument=text, text=text)
    nearest = nearest_name(text, [*choices, "monai:PATH"])
    advice = f"Nearest: {nearest}" if nearest else "Give a run or an encoder folder, or one of " + ", ".join(choices)
    raise TaskError("is neither a folder nor a known model", where=text, do=advice)


def name_models(specs: Sequence[ModelSpec]) -> list[str]:
    """A name for each model, all different; raises TaskError when one is named twice."""
    texts = [spec.text for spec in specs]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise TaskError(f"{twice[0]} is named twice", do="Name each model once")
    names = [spec.name for spec in specs]
    return [name if names.count(name) == 1 else spec.text for spec, name in zip(specs, names, strict=True)]


def load_network(spec: ModelSpec, *, device: str = "auto", precision: str = "fp32") -> Encoder:
    """The encoder of a model with weights, in evaluation mode, without gradients.

    Raises TaskError for a model without weights, EncoderError for weights that do not fit, MissingExtraError without MONAI.
    """
    if spec.kind == "scratch":
        return load_encoder(spec.text, device=device, precision=precision)
    if spec.kind == "encoder":
        return load_saved_encoder(spec.argument, device=device, precision=precision)
    if spec.kind == "resnet3d":
        size, _, seed = spec.argument.partition(":")
        config = _describe_foreign(f"resnet3d:{size}", _shape_resnet(size), seed=int(seed) if seed.isdigit() else 0)
        return _wrap(_build_resnet(size, config.seed), config, spec.text, device, precision)
    if spec.kind == "monai":
        swin, config = _read_monai(Path(spec.argument))
        return _wrap(swin, config, spec.text, device, precision)
    raise TaskError("has no weights", where=spec.text, do="Give a run, an encoder folder, scratch:SIZE, or resnet3d:SIZE")


def load_reader() -> Encoder:
    """An encoder that merely reads and prepares scans, of any modality, for models that have none."""
    fresh = load_encoder("scratch:tiny", device="cpu")
    return replace(fresh, config=replace(fresh.config, modalities=("CT", "MR", "other")))


def save_encoder(encoder: Encoder, folder: str | Path) -> None:
    """Write an encoder folder, whatever its backbone; `load_saved_encoder` reads it."""
    write_encoder(folder, encoder.config, encoder.network.state_dict())


def load_saved_encoder(folder: str | Path, *, device: str = "auto", precision: str = "fp32") -> Encoder:
    """The encoder of a run or encoder folder, of any backbone that `save_encoder` writes."""
    path = Path(folder)
    inner = path / "encoder" if (path / "encoder").is_dir() else path
    if not (inner / "config.json").is_file() or read_config(inner).backbone == "swin":
        return load_encoder(path, device=device, precision=precision)
    config = read_config(inner)
    kind, _, argument = config.backbone.partition(":")
    module = _build_resnet(argument, config.seed) if kind == "resnet3d" else _build_monai(config.shape, argument)
    encoder = _wrap(module, config, str(folder), device, precision)
    _fill(encoder.network, read_weights(inner), inner)
    return encoder


class ForeignNetwork(nn.Module):
    """Another library's backbone where a pretraining's network stands: an encoder, no semantic attention."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.semantic_attention = None


class ResNetStages(nn.Module):
    """A 3D ResNet of MONAI as four feature maps at strides 4, 8, 16, 32."""

    def __init__(self, resnet: Any, shape: SwinShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool)
        self.layers = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])

    def forward(
        self, view: Tensor, hidden: Tensor | None = None, drop: Tensor | None = None, stages: int | None = None
    ) -> list[Tensor]:
        """Feature maps of views with intensities in [0, 1]; `hidden` and `drop` stand for the Swin encoder's and must be None."""
        _refuse_masks(hidden, drop)
        x, maps = self.stem(view), []
        for layer in self.layers[:stages]:
            x = layer(x)
            maps.append(x)
        return maps


class MonaiSwinStages(nn.Module):
    """MONAI's SwinTransformer as four feature maps, each after its stage's merging."""

    def __init__(self, swin: nn.Module, shape: SwinShape) -> None:
        super().__init__()
        self.shape = shape
        self.swin = swin

    def forward(
        self, view: Tensor, hidden: Tensor | None = None, drop: Tensor | None = None, stages: int | None = None
    ) -> list[Tensor]:
        """Feature maps of views with intensities in [0, 1]; `hidden` and `drop` stand for the Swin encoder's and must be None."""
        _refuse_masks(hidden, drop)
        return list(self.swin(view, normalize=False))[1:][:stages]


def _refuse_masks(hidden: Tensor | None, drop: Tensor | None) -> None:
    if hidden is not None or drop is not None:
        raise ValueError("this backbone knows neither masks nor stochastic depth")


def _list_choices() -> list[str]:
    fresh = [f"scratch:{size}" for size in list_presets("sizes")]
    return [*fresh, *(f"resnet3d:{size}" for size in RESNETS), "radiomics:size", "pixels", "histogram"]


def _describe_foreign(backbone: str, shape: SwinShape, *, seed: int = 0) -> EncoderConfig:
    # The preparation is dagman's own, so that every model is given the same voxels.
    return EncoderConfig(
        shape=shape,
        semantic=None,
        size=backbone,
        method="scratch" if backbone.startswith("resnet3d") else "monai",
        spacing=2.0,
        low=-1000.0,
        high=500.0,
        view=64,
        seed=seed,
        backbone=backbone,
    )


def _wrap(module: nn.Module, config: EncoderConfig, source: str, device: str, precision: str) -> Encoder:
    chosen = choose_device(device).value
    network = ForeignNetwork(module).to(chosen).requires_grad_(False).eval()
    arithmetic = choose_precision(precision, chosen).value
    return Encoder(network=cast(Network, network), config=config, device=chosen, precision=arithmetic, source=source)


def _shape_resnet(size: str) -> SwinShape:
    return SwinShape(embed=128 if size == "50" else 32, depths=RESNETS[size], heads=(1, 1, 1, 1))


def _build_resnet(size: str, seed: int) -> ResNetStages:
    try:
        from monai.networks.nets.resnet import ResNet
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, "weights") % 2**32)
        resnet = ResNet(
            "bottleneck" if size == "50" else "basic",
            list(RESNETS[size]),
            [64, 128, 256, 512],
            n_input_channels=1,
            conv1_t_stride=2,
            feed_forward=False,
        )
    _use_group_norm(resnet)
    return ResNetStages(resnet, _shape_resnet(size))


def _use_group_norm(module: nn.Module) -> None:
    """Batch statistics would depend on how a batch is cut to fit the memory; MONAI's `norm` reaches the first layer alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _use_group_norm(child)


def _build_monai(shape: SwinShape, merging: str) -> MonaiSwinStages:
    try:
        from monai.networks.nets.swin_unetr import SwinTransformer
    except ImportError:
        raise MissingExtraError("MONAI", "monai") from None
    swin = SwinTransformer(
        in_chans=1,
        embed_dim=shape.embed,
        window_size=(shape.window,) * 3,
        patch_size=(2, 2, 2),
        depths=shape.depths,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        downsample=merging,
    )
    return MonaiSwinStages(swin, shape)


def _read_monai(path: Path) -> tuple[MonaiSwinStages, EncoderConfig]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EncoderError(
            f"is no safetensors file ({error}); others are not read, as they may run code", where=path, do=_CONVERT
        ) from None
    state = {_strip(name): tensor.float() for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name.startswith(("patch_embed.", "layers"))}
    if "patch_embed.proj.weight" not in state:
        raise EncoderError("holds no SwinTransformer of MONAI (no patch_embed.proj.weight)", where=path, do=_CONVERT)
    shape = _read_shape(state, path)
    merging = metadata.get("downsample", "merging")
    stages = _build_monai(shape, merging)
    _fill(stages.swin, state, path)
    return stages, _describe_foreign(f"monai-swin:{merging}", shape)


def _strip(name: str) -> str:
    for prefix in ("module.", "swinViT.", "swin."):
        name = name.removeprefix(prefix)
    return name


def _read_shape(state: dict[str, Tensor], path: Path) -> SwinShape:
    blocks = [
        [name for name in state if name.startswith(f"layers{stage}.0.blocks.") and name.endswith("norm1.weight")]
        for stage in range(1, 5)
    ]
    tables = [state.get(f"layers{stage}.0.blocks.0.attn.relative_position_bias_table") for stage in range(1, 5)]
    if state["patch_embed.proj.weight"].shape[1] != 1:
        raise EncoderError("was trained on several channels", where=path, do="Give weights for one channel")
    found = [table for table in tables if table is not None]
    if len(found) < 4:
        raise EncoderError("lacks stages of a SwinTransformer", where=path, do=_CONVERT)
    return SwinShape(
        embed=state["patch_embed.proj.weight"].shape[0],
        depths=tuple(len(names) for names in blocks),
        heads=tuple(table.shape[1] for table in found),
        # A table has a row for each of (2 w - 1)^3 offsets.
        window=(round(found[0].shape[0] ** (1 / 3)) + 1) // 2,
    )


def _fill(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    wanted = module.state_dict()
    # Recomputed from the window by MONAI; some files leave it out.
    absent = sorted(name for name in wanted.keys() - state.keys() if not name.endswith("relative_position_index"))
    surplus = sorted(state.keys() - wanted.keys())
    unfit = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    reasons = (
        (absent, "is missing", "are missing"),
        (surplus, "has no place", "have no place"),
        (unfit, "has another shape", "have another shape"),
    )
    for names, one, many in reasons:
        if names:
            raise EncoderError(
                f"{len(names)} of {len(wanted)} weights {one if len(names) == 1 else many}, {names[0]} first",
                where=where,
                do="Use this model's weights",
            )
    module.load_state_dict(state, strict=False)
