"""From a run, an encoder folder, or `scratch:SIZE` to an encoder; all weights in place, or a refusal that says which are not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dagman.devices import choose_device, choose_precision
from dagman.encoder.encoder import Encoder
from dagman.encoder.folder import EncoderConfig, read_config, read_weights
from dagman.errors import EncoderError, SettingsError
from dagman.method.networks import Network, ProjectorShape, SemanticShape
from dagman.model import SwinShape
from dagman.randomness import address
from dagman.records.counts import count_noun
from dagman.settings import Settings
from dagman.settings.presets import load_settings

_NAMED = 5


def load_encoder(path: str | Path, *, device: str = "auto", precision: str = "fp32") -> Encoder:
    """Load an encoder (`dagman.load`).

    path: a run folder, an encoder folder, or `scratch:SIZE[:SEED]`, fresh weights of a size preset: those a run of that seed
    starts from. device: auto, cpu, cuda or cuda:N. precision: fp32, bf16, or auto.

    Raises:
        EncoderError: Nothing there, damaged, weights missing or left over, or an unknown size (the nearest is named).
    """
    chosen = choose_device(device).value
    if str(path).startswith("scratch:"):
        config, network = _make_fresh(str(path))
    else:
        folder = _find_folder(Path(path))
        config = read_config(folder)
        network = _build_network(config)
        _fill_network(network, read_weights(folder), folder)
    network = network.to(chosen).requires_grad_(False).eval()
    arithmetic = choose_precision(precision, chosen).value
    return Encoder(network=network, config=config, device=chosen, precision=arithmetic, source=str(path))


def describe_shapes(settings: Settings) -> tuple[SwinShape, SemanticShape | None]:
    """Sizes of the encoder and of its semantic attention."""
    m = settings.model
    shape = SwinShape(embed=m.embed, depths=m.depths, heads=m.heads, window=m.window, mlp_ratio=m.mlp_ratio, drop_path=m.drop_path)
    semantic = SemanticShape(stage=m.sa_stage, heads=m.sa_heads, depth=m.sa_depth, position=m.sa_position)
    return shape, semantic if m.semantic_attention else None


def _find_folder(path: Path) -> Path:
    if not path.is_dir():
        do = "Give a run, an encoder folder, or scratch:tiny"
        raise EncoderError("is no folder" if path.exists() else "does not exist", where=path, do=do)
    if (path / "encoder").is_dir():
        return path / "encoder"
    if (path / "settings.toml").exists() and not (path / "config.json").exists():
        raise EncoderError("this run has not written an encoder yet", where=path, do="Let it reach its first checkpoint")
    return path


def _make_fresh(name: str) -> tuple[EncoderConfig, Network]:
    _, size, *rest = name.split(":")
    if len(rest) > 1 or (rest and not rest[0].isdigit()):
        raise EncoderError("is no fresh encoder", where=name, do="Write scratch:SIZE or scratch:SIZE:SEED, such as scratch:tiny:1")
    seed = int(rest[0]) if rest else 0
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
    )
    # The same draw, in the same order, as a run's first weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, "weights") % 2**32)
        return config, _build_network(config)


def _build_network(config: EncoderConfig) -> Network:
    return Network(config.shape, config.semantic, ProjectorShape(names=()), reconstruct=False, mask_fill=config.mask_fill)


def _fill_network(network: Network, state: dict[str, Tensor], folder: Path) -> None:
    wanted = network.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    surplus = sorted(state.keys() - wanted.keys())
    unfit = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    reasons = (
        (missing, "is missing", "are missing"),
        (surplus, "has no place in it", "have no place in it"),
        (unfit, "has another shape", "have another shape"),
    )
    for names, one, many in reasons:
        if names:
            listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            matched = len(wanted.keys() & state.keys()) - len(unfit)
            text = f"{matched} of {len(wanted)} weights fit; {count_noun(len(names), one, many)}: {listed}"
            raise EncoderError(text, where=folder / "model.safetensors", do="Use the config.json these weights were written with")
    network.load_state_dict(state)
