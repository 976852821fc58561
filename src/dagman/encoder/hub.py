"""Encoders on the Hugging Face hub. This is the only module that opens network connections, and only if the user allows it.

`hub:OWNER/NAME` is read from the local cache; with DAGMAN_ONLINE=1 in the environment, it is downloaded if it is missing. Only
configuration and weights are downloaded; code in the repository is neither downloaded nor run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dagman.errors import EncoderError, MissingExtraError

VARIABLE = "DAGMAN_ONLINE"
_FILES = ["config.json", "model.safetensors"]
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def fetch_folder(name: str) -> Path:
    """Return the cached folder of OWNER/NAME or OWNER/NAME@REVISION, and download it if this is allowed.

    Raises:
        EncoderError: It is not in the cache and connections are not allowed, or the hub refuses it.
        MissingExtraError: huggingface_hub is not installed.
    """
    where = f"hub:{name}"
    if not _NAME.fullmatch(name):
        raise EncoderError("is not a name on a hub", where=where, do="Write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub") from None
    repository, _, revision = name.partition("@")
    try:
        path = snapshot_download(
            repository, revision=revision or None, allow_patterns=_FILES, local_files_only=not is_online(), token=None
        )
    except Exception as error:
        if not is_online():
            what = f"is not in the cache of this machine, and dagman makes no connection unless {VARIABLE}=1"
            raise EncoderError(what, where=where, do=f"Set {VARIABLE}=1 for this command, or give a folder") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(f"cannot be fetched ({reason})", where=where, do="Check the name and the connection") from None
    return Path(path)


def upload_folder(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder to OWNER/NAME, which is created if it does not exist, and return its address.

    Raises:
        EncoderError: Connections are not allowed, or the hub refuses the upload.
        MissingExtraError: huggingface_hub is not installed.
    """
    where = f"hub:{name}"
    if not is_online():
        what = f"was not uploaded: dagman makes no connection unless {VARIABLE}=1"
        raise EncoderError(what, where=where, do=f"Set {VARIABLE}=1 for this command")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub") from None
    try:
        hub = HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(f"cannot be written ({reason})", where=where, do="Check your token and the name") from None


def is_online() -> bool:
    """Check whether the user allows network connections."""
    return os.environ.get(VARIABLE) == "1"
