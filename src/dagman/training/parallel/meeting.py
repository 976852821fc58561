"""How ranks meet: all of one start agree on a name, under which nothing of an earlier start lies.

torchrun keeps one key-value store over all restarts, and what the ranks of an earlier start wrote there (addresses that no one
listens at any more) stays in it: a restarted rank would take those for its peers' (pytorch issue 135712). Nor do the agents of
several hosts count restarts alike. So rank 0 greets every rank by a word that this start alone knows.
"""

from __future__ import annotations

import datetime
import time
import uuid

from torch._C._distributed_c10d import Store

POLL_S = 0.02
_PREFIX = "dagman"


def meet(store: Store, rank: int, size: int, timeout: datetime.timedelta) -> str:
    """The name that all ranks of this start have in common, once all have come. Raises RuntimeError for those that have not."""
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"{_PREFIX}/hello/{rank}", word)
        # Only the rank 0 that has read this word answers it, and not one of an earlier start.
        store.wait([f"{_PREFIX}/welcome/{word}"], timeout)
        name = store.get(f"{_PREFIX}/welcome/{word}").decode()
        store.set(f"{_PREFIX}/met/{name}/{rank}", "")
        return name
    missing, greeted, until = set(range(1, size)), set(), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{_PREFIX}/met/{word}/{other}"]):
                missing.remove(other)
            elif store.check([f"{_PREFIX}/hello/{other}"]):
                # The word may be of an earlier start, whose rank will not come, until the present one writes its own over it.
                theirs = store.get(f"{_PREFIX}/hello/{other}").decode()
                if theirs not in greeted:
                    store.set(f"{_PREFIX}/welcome/{theirs}", word)
                    greeted.add(theirs)
        if missing and time.monotonic() > until:
            absent = ", ".join(map(str, sorted(missing)))
            raise RuntimeError(f"no sign of rank {absent} within {timeout.total_seconds():.0f} s")
        if missing:
            time.sleep(POLL_S)
    return word
