"""The secret key behind pseudonyms, a small file that the user keeps outside every store.

With the key one can compute the pseudonym of a PatientID or file name (`Key.name`); without it, trying out a list of candidates
leads nowhere. The file is the one that DAGMAN_KEY names (`--key` sets it for one command), otherwise one in the user's
configuration folder, where the first `dagman prepare` creates it.
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
_SECRET_BYTES = 32
_NAME_DIGITS = 16
"""Hex digits of a pseudonym, 4 bits each."""
_HEADER = "dagman key 1: "


@dataclass(frozen=True)
class Key:
    """A 256-bit secret. Equal keys give equal pseudonyms; the fingerprint identifies a key without revealing it."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the key."""
        return hash_bytes(b"dagman key fingerprint\0" + self.secret)[:_NAME_DIGITS]

    def name(self, text: str) -> str:
        """Return the pseudonym of a text: 16 hex digits (64 bits) of its HMAC-SHA256."""
        return hmac.digest(self.secret, text.encode("utf-8", "surrogateescape"), "sha256").hex()[:_NAME_DIGITS]


_CHOSEN: ContextVar[tuple[Key | None] | None] = ContextVar("key", default=None)


@contextlib.contextmanager
def use_key(key: Key | None) -> Iterator[None]:
    """Use this key for all pseudonyms within the block, instead of the user's own; None means no key."""
    token = _CHOSEN.set((key,))
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def find_key(path: str | Path | None = None) -> Key | None:
    """Return the key in use, or None if there is none.

    It is read from `path` if given, otherwise it is the one set by `use_key`, the file named by DAGMAN_KEY, or the file at the
    default location.

    Raises:
        SettingsError: if a file that was named explicitly is missing or is not a key file.
    """
    if path is None and (chosen := _CHOSEN.get()) is not None:
        return chosen[0]
    file = Path(path) if path is not None else locate_key()
    try:
        status = file.stat()
    except OSError as error:
        if path is None and not os.environ.get(VARIABLE):
            return None
        do = "Correct --key or DAGMAN_KEY; dagman prepare creates a key for a new store"
        raise SettingsError(f"the key cannot be read ({error.strerror})", where=file, do=do) from None
    return _read_key(file, status.st_mtime_ns)


def locate_key() -> Path:
    """Return the path of the user's key, whether or not it exists yet."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "dagman" / "pseudonyms.key"


def make_key(path: str | Path) -> Key:
    """Create a key file that only its owner can read, and return the key; an existing file is kept.

    Raises:
        SettingsError: if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{_HEADER}{secrets.token_hex(_SECRET_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link instead of a rename, which would replace a key that another process created at the same moment.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise SettingsError(
            f"the key cannot be written ({error.strerror})", where=path, do="Name another file: --key PATH"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return _read_key(path, path.stat().st_mtime_ns)


def make_asked_key() -> str:
    """Create the key file if DAGMAN_KEY (or --key) names one that does not exist; return a message about it, or ""."""
    path = locate_key()
    if not os.environ.get(VARIABLE) or path.exists():
        return ""
    make_key(path)
    return describe_made(path)


def describe_made(path: Path) -> str:
    """Return the message that reports a newly created key."""
    return f"created the key for pseudonyms {path}; keep it, and store it separately from the store"


@functools.lru_cache(maxsize=8)
def _read_key(path: Path, modified_ns: int) -> Key:
    """Read a key file; `modified_ns` is part of the cache key, so that a replaced file is read again."""
    try:
        text = path.read_text(encoding="ascii")
        secret = bytes.fromhex(text.removeprefix(_HEADER).strip()) if text.startswith(_HEADER) else b""
    except OSError as error:
        raise SettingsError(f"the key cannot be read ({error.strerror})", where=path, do="Check its permissions") from None
    except ValueError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise SettingsError("is not a dagman key file", where=path, do="Name the file that dagman prepare created, or a new path")
    return Key(secret)
