"""Stopping within a step: the first step of a large network can take minutes, and nothing is lost by abandoning it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

LONG_STEP = 5.0
"""Steps longer than this many seconds are abandoned on a stop, shorter ones are completed. [ours]"""


class StopRequestedError(Exception):
    """A stop was requested within a step that may be abandoned."""


@contextmanager
def interruptible(networks: Iterable[nn.Module | None], stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Within the block, raise StopRequestedError from the networks' passes once a stop is requested.

    Python handles signals only between its own instructions, of which a backward pass has none; a hook at each module of the
    forward pass, and at each weight in the backward pass, provides some.
    """

    def check(*_: Any) -> None:
        if stop_requested():
            raise StopRequestedError

    def check_gradient(_: Tensor) -> None:
        check()

    handles: list[Any] = []
    for network in networks:
        if network is None:
            continue
        handles += [module.register_forward_pre_hook(check) for module in network.modules() if not list(module.children())]
        handles += [p.register_post_accumulate_grad_hook(check_gradient) for p in network.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
