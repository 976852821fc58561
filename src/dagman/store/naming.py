"""Determines the key behind the pseudonyms of a store, which records its fingerprint; any other key is rejected."""

from __future__ import annotations

from pathlib import Path

from dagman.errors import StoreError
from dagman.records.key import Key, describe_made, find_key, locate_key, make_key
from dagman.store.format import read_info

_UNKEYED = (
    "the store was made before keys were introduced: its pseudonyms stay unkeyed, and differ from those of other commands; "
    "prepare the scans into a new store for keyed ones"
)


def settle_key(store: Path, path: str | Path | None = None) -> tuple[Key | None, tuple[str, ...]]:
    """Find the key of a store; for a new store, it is created if it does not exist.

    Args:
        store: the store, which may not exist yet.
        path: the key's file; by default the user's own (`records.key`).

    Returns:
        The key, None for a store from before keys were introduced, and messages for the user.

    Raises:
        StoreError: if the store was made with a different key, its key is missing, or a key is given for a store without one.
    """
    given = Path(path) if path is not None else None
    if not (store / "store.json").exists():
        file = given or locate_key()
        if file.exists():
            return find_key(file), ()
        return make_key(file), (describe_made(file),)
    made_with = read_info(store).get("key")
    if made_with is None:
        if given is not None:
            what = "was made before keys were introduced, and cannot use one: a patient would have two pseudonyms in it"
            raise StoreError(what, where=store, do="Omit --key, or prepare the scans into a new store")
        return None, (_UNKEYED,)
    key = find_key(given)
    if key is None or key.fingerprint != made_with:
        present = "there is none here" if key is None else f"this one is {key.fingerprint}"
        raise StoreError(f"was made with the key {made_with}; {present}", where=store, do="Give its key: --key PATH, or DAGMAN_KEY")
    return key, ()
