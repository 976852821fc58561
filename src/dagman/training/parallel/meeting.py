"""How ranks meet: those of one start agree on a name, so that nothing left by an earlier start is mistaken for theirs.

torchrun keeps one key-value store over all restarts, and the addresses that ranks of an earlier start wrote to it remain there,
although nobody listens at them any more: a restarted rank would take them for those of its peers (pytorch issue 135712). The
restart counts of several hosts' agents may differ, too. So rank 0 greets every rank with a word that only this start knows.
"""

from __future__ import annotations

import datetime
import time
import uuid

from torch._C._distributed_c10d import Store

POLL_S = 0.02
_PREFIX = "dagman"


def meet(store: Store, rank: int, size: int, timeout: datetime.timedelta) -> str:
    """Wait for all ranks of this start; returns the name they agree on. Raises RuntimeError if some do not arrive."""
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"{_PREFIX}/hello/{rank}", word)
        # Only a rank 0 that has read this word answers it; one of an earlier start has not.
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
                # Until the rank of this start overwrites it, the word may be that of an earlier start, whose rank will not answer.
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
