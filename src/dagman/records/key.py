"""The key of pseudonyms: a small file that its user keeps, outside every store, so that no list of candidates undoes a name.

Who has the key can find out which pseudonym a PatientID or a file name has (`Key.name`); who has not cannot. It is found at
DAGMAN_KEY (which `--key` sets for one command), else in the user's configuration folder, where the first `dagman prepare` makes it.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import os
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from dagman.errors import SettingsError
from dagman.records.hashes import hash_bytes

VARIABLE = "DAGMAN_KEY"
_BYTES, _DIGITS = 32, 16
"""Of the secret; and of a name, 4 bits each."""
_FIRST = "dagman key 1: "


@dataclass(frozen=True)
class Key:
    """A secret of 256 bits. Equal keys give equal names; the fingerprint says which key without helping to find it."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the key."""
        return hash_bytes(b"dagman key fingerprint\0" + self.secret)[:_DIGITS]

    def name(self, text: str) -> str:
        """16 hex digits (64 bits of HMAC-SHA256) for a text."""
        return hmac.digest(self.secret, text.encode("utf-8", "surrogateescape"), "sha256").hex()[:_DIGITS]


_CHOSEN: ContextVar[tuple[Key | None] | None] = ContextVar("key", default=None)


@contextlib.contextmanager
def use_key(key: Key | None) -> Iterator[None]:
    """Within the block this key names what is found, whichever the user's own is; None: no key."""
    token = _CHOSEN.set((key,))
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def find_key(path: str | Path | None = None) -> Key | None:
    """The key in use: that of `use_key`, of `path`, of DAGMAN_KEY, or of the default place; None where there is none.

    Raises SettingsError when a file that was asked for is missing, or holds no key.
    """
    if path is None and (chosen := _CHOSEN.get()) is not None:
        return chosen[0]
    place = Path(path) if path is not None else locate_key()
    try:
        status = place.stat()
    except OSError as error:
        if path is None and not os.environ.get(VARIABLE):
            return None
        do = "Correct --key or DAGMAN_KEY; dagman prepare makes a key for a new store"
        raise SettingsError(f"the key cannot be read ({error.strerror})", where=place, do=do) from None
    return _read_key(place, status.st_mtime_ns)


def locate_key() -> Path:
    """Where the user's key lies, or is made."""
    if asked := os.environ.get(VARIABLE):
        return Path(asked)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "dagman" / "pseudonyms.key"


def make_key(path: str | Path) -> Key:
    """Make a key that its owner alone can read, and return it; one that is there already is kept.

    Raises SettingsError when it cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{_FIRST}{secrets.token_hex(_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: it never replaces the key that another process made at the same moment.
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    except OSError as error:
        raise SettingsError(f"the key cannot be written ({error.strerror})", where=path, do="Give a place: --key PATH") from error
    finally:
        beside.unlink(missing_ok=True)
    return _read_key(path, path.stat().st_mtime_ns)


def make_asked_key() -> str:
    """Make the key where DAGMAN_KEY (or --key) names a file that is not there yet; what to report of it, or nothing."""
    place = locate_key()
    if not os.environ.get(VARIABLE) or place.exists():
        return ""
    make_key(place)
    return describe_made(place)


def describe_made(place: Path) -> str:
    """What a command reports of a key that it made."""
    return f"created the key for pseudonyms {place}; keep it, and store it separately from the store"


@functools.lru_cache(maxsize=8)
def _read_key(path: Path, written: int) -> Key:
    """`written`, the time, lets a replaced file be read again."""
    try:
        text = path.read_text(encoding="ascii")
        secret = bytes.fromhex(text.removeprefix(_FIRST).strip()) if text.startswith(_FIRST) else b""
    except OSError as error:
        raise SettingsError(f"the key cannot be read ({error.strerror})", where=path, do="Check its permissions") from None
    except ValueError:
        secret = b""
    if len(secret) != _BYTES:
        raise SettingsError("is not a dagman key file", where=path, do="Give the file that dagman prepare made, or a new path")
    return Key(secret)
