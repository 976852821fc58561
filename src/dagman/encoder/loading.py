"""Load encoders of any backbone: from a run, an encoder folder, weights of another program, or with random initialisation.

Weights are loaded strictly: an error names those that are missing or left over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dagman.devices import choose_device, choose_precision
from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig, check_sizes, check_weights, read_config, read_weights
from dagman.encoder.foreign import ImportReport, read_foreign, split_statement
from dagman.encoder.hub import fetch_folder
from dagman.errors import EncoderError, SettingsError
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import BACKBONES, SwinShape, ViTShape, find_backbone
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.records.names import suggest_path
from dagman.settings import Settings
from dagman.settings.presets import load_settings

_NAMED = 5
_REWRITE = "Use the config.json these weights were written with"


Weights = Literal["auto", "teacher", "student"]
"""Which weights of a run to load: the EMA teacher's, the student's, or (auto) those that it exports by default."""


def load_encoder(path: str | Path, *, device: str = "auto", precision: str = "fp32", weights: str = "auto") -> Encoder:
    """Load an encoder (`dagman.load`) in evaluation mode, without gradients.

    Args:
        path: A run folder, an encoder folder, or one of these names:
            `scratch:SIZE[:SEED]`: a size preset with the random weights with which a run of that seed starts;
            `resnet3d:SIZE[:SEED]` or `resenc:SIZE[:SEED]`: a randomly initialised CNN;
            `monai:FILE`: weights of a Swin from MONAI, SMIT or VoCo (see `encoder.foreign`), or
            `monai:FILE:spacing=1.5:low=-175:high=250` if their preprocessing is unknown;
            `hub:OWNER/NAME`: an export by `dagman export --to hf`, from the cache of a hub.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, bf16 or auto.
        weights: For runs, teacher, student, or auto: the teacher's weights if the method has a teacher.

    Raises:
        EncoderError: The encoder does not exist or is damaged, the run lacks these weights, or the weights in the file differ from
            those of the network.
        MissingExtraError: The backbone is from a library that is not installed.
    """
    chosen = choose_device(device).value
    imported: ImportReport | None = None
    head, _, rest = str(path).partition(":")
    if head == "scratch":
        config, network = _make_fresh(str(path))
    elif head == "monai" and rest:
        config, state, imported = read_foreign(rest)
        network = _build_network(config)
        module = "net" if config.backbone.startswith("segresnet") else "swin"
        renamed = {f"encoder.{module}.{name}": tensor for name, tensor in state.items()}
        _fill_weights(network, renamed, split_statement(rest)[0], "Use this model's weights")
    elif head in BACKBONES and rest:
        config, network = _make_variant(str(path))
    else:
        folder = find_folder(Path(path), weights) if head != "hub" else fetch_folder(rest)
        config = read_config(folder)
        state = _rename_old(read_weights(folder), config)
        check_sizes(folder, config, state)
        network = _build_network(config)
        _fill_weights(network, state, folder / "model.safetensors", _REWRITE)
        check_weights(folder)
    network = network.to(chosen).requires_grad_(False).eval()
    used = choose_precision(precision, chosen).value
    return Encoder(network=network, config=config, device=chosen, precision=used, source=str(path), imported=imported)


def describe_shapes(settings: Settings) -> tuple[SwinShape, SemanticShape | None]:
    """Return the sizes of the encoder and of its semantic attention (None if there is none)."""
    m = settings.model
    kind = find_backbone(m.backbone)
    values = {name: getattr(m, name) for name in ("embed", "depths", "heads", "window", "mlp_ratio", "drop_path")}
    if kind.shape is ViTShape:
        shape: SwinShape = ViTShape(**values, view=settings.view.side)
        # A ViT has its own [CLS] token, which is read after the last block.
        return shape, SemanticShape(stage=4, heads=m.heads[0], depth=0) if m.semantic_attention else None
    variants = kind.baselines
    # The sizes of foreign networks follow from their variant; the settings for a Swin are ignored.
    shape = variants.get(m.backbone.partition(":")[2]) or SwinShape(**values)
    semantic = SemanticShape(stage=m.sa_stage, heads=m.sa_heads, depth=m.sa_depth, position=m.sa_position)
    return shape, semantic if m.semantic_attention else None


def find_folder(path: Path, weights: str = "auto") -> Path:
    """Find the encoder folder of a run; `path` itself if it is an encoder folder.

    Raises:
        EncoderError: The encoder does not exist, or the run lacks these weights.
    """
    if weights not in get_args(Weights):
        what = f"{weights!r} is not a choice of weights"
        raise EncoderError(what, where=path, do=f"Choose one of {', '.join(get_args(Weights))}")
    if not path.is_dir():
        do = "Give a run, an encoder folder, or scratch:tiny"
        if path.exists():
            raise EncoderError("is not a folder", where=path, do=do)
        raise EncoderError("does not exist", where=path, do=suggest_path(path, do))
    if (path / "settings.toml").exists() and not (path / "config.json").exists() and not (path / "encoder").is_dir():
        raise EncoderError("this run has not written an encoder yet", where=path, do="Wait for its first checkpoint")
    folder = path / "encoder" if (path / "encoder").is_dir() else path
    if weights == "student" and (path / "encoder-student").is_dir():
        folder = path / "encoder-student"
    stored = read_config(folder).weights if weights != "auto" else "auto"
    if stored != weights:
        do = "Omit --weights, or pretrain again: runs keep both since 0.2" if folder != path else "Omit --weights"
        raise EncoderError(f"holds the weights of the {stored}, not of the {weights}", where=path, do=do)
    return folder


def _make_fresh(name: str) -> tuple[EncoderConfig, Network]:
    size, seed = _split_name(name, "scratch:tiny:1")
    try:
        settings, _ = load_settings(size)
    except SettingsError as error:
        raise EncoderError(error.what, where=name, do=error.do) from None
    shape, semantic = describe_shapes(settings)
    view = settings.view
    config = EncoderConfig(
        shape=shape,
        semantic=semantic,
        size=size,
        method="scratch",
        spacing=view.spacing,
        low=view.low,
        high=view.high,
        view=view.side,
        mask_fill=settings.masking.mask_fill,
        seed=seed,
        backbone=settings.model.backbone,
    )
    return config, _draw_network(config)


def _make_variant(name: str) -> tuple[EncoderConfig, Network]:
    head = name.partition(":")[0]
    variants = BACKBONES[head].baselines
    size, seed = _split_name(name, f"{head}:{next(iter(variants), 'SIZE')}:1")
    if size not in variants:
        listed = " or ".join(f"{head}:{variant}" for variant in variants) or "a run or an encoder folder"
        raise EncoderError(f"there is no {head} of size {size!r}", where=name, do=f"Give {listed}")
    config = _describe_foreign(f"{head}:{size}", variants[size], method="scratch", seed=seed)
    return config, _draw_network(config)


def _split_name(name: str, example: str) -> tuple[str, int]:
    head, size, *rest = name.split(":")
    if len(rest) > 1 or (rest and not rest[0].isdigit()):
        raise EncoderError(
            "is not a valid name of an untrained encoder",
            where=name,
            do=f"Write {head}:SIZE or {head}:SIZE:SEED, such as {example}",
        )
    return size, int(rest[0]) if rest else 0


def _describe_foreign(backbone: str, shape: SwinShape, *, method: str, seed: int = 0) -> EncoderConfig:
    # Untrained networks get dagman's own preprocessing, so that all models receive the same voxels.
    return EncoderConfig(
        shape=shape,
        semantic=None,
        size=backbone,
        method=method,
        spacing=2.0,
        low=-1000.0,
        high=500.0,
        view=64,
        seed=seed,
        backbone=backbone,
    )


def _draw_network(config: EncoderConfig) -> Network:
    # Draw in the same order as a run does, so that the weights equal the initial weights of a run with this seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(config.seed, "weights") % 2**32)
        return _build_network(config)


def _build_network(config: EncoderConfig) -> Network:
    return Network(
        config.shape,
        config.semantic,
        ProjectorShape(names=()),
        reconstruct=False,
        mask_fill=config.mask_fill,
        backbone=config.backbone,
    )


def _rename_old(state: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Rename the weights of ResNets in older folders, in which stages were called layers."""
    if not config.backbone.startswith("resnet3d"):
        return state
    return {name.replace("encoder.layers.", "encoder.stages.", 1): value for name, value in state.items()}


def _fill_weights(module: nn.Module, state: dict[str, Tensor], where: Path, do: str) -> None:
    wanted = module.state_dict()
    # MONAI computes this index from the window, and some files do not contain it.
    missing = sorted(name for name in wanted.keys() - state.keys() if not name.endswith("relative_position_index"))
    surplus = sorted(state.keys() - wanted.keys())
    unfit = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    reasons = (
        (missing, "is missing", "are missing"),
        (surplus, "has no place in it", "have no place in it"),
        (unfit, "has another shape", "have another shape"),
    )
    for names, singular, plural in reasons:
        if names:
            listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            matched = len(wanted.keys() & state.keys()) - len(unfit)
            text = f"{matched} of {len(wanted)} weights fit; {count_noun(len(names), singular, plural)}: {listed}"
            raise EncoderError(text, where=where, do=do)
    broken = sorted(name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        what = f"holds {count_noun(len(broken), 'weight')} that are not finite numbers, {broken[0]} first"
        raise EncoderError(what, where=where, do="Use an encoder from a step before the run failed")
    module.load_state_dict(state, strict=False)
