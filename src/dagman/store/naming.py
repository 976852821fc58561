"""Which key names the patients of a store: its own, recorded by fingerprint; another one is refused."""

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
    """The key that names a store's patients, and what to report of it.

    path: of the key; by default the user's own (`records.key`). For a new store it is made where there is none. A store from
    before there were keys goes on without one. Raises StoreError when the store was made with another key, its key is absent, or
    one is given for a store that has none.
    """
    asked = Path(path) if path is not None else None
    if not (store / "store.json").exists():
        place = asked or locate_key()
        if place.exists():
            return find_key(place), ()
        return make_key(place), (describe_made(place),)
    made_with = read_info(store).get("key")
    if made_with is None:
        if asked is not None:
            what = "was made before keys were introduced, and cannot use one: a patient would have two pseudonyms in it"
            raise StoreError(what, where=store, do="Omit --key, or prepare the scans into a new store")
        return None, (_UNKEYED,)
    key = find_key(asked)
    if key is None or key.fingerprint != made_with:
        found = "there is none here" if key is None else f"this one is {key.fingerprint}"
        raise StoreError(f"was made with the key {made_with}; {found}", where=store, do="Give its key: --key PATH, or DAGMAN_KEY")
    return key, ()
