"""Proves that pseudonyms hang on a key that its user alone holds, and that a store goes on with its own key alone."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest

from dagman.errors import SettingsError
from dagman.records.key import Key, find_key, locate_key, make_key, use_key


def test_a_name_is_hmac_sha256_of_64_bits_or_more():
    key = Key(bytes(range(32)))
    assert key.name("MRN-4711") == hmac.new(bytes(range(32)), b"MRN-4711", hashlib.sha256).hexdigest()[:16]
    assert key.name("MRN-4711") != Key(bytes(32)).name("MRN-4711")
    assert key.fingerprint != Key(bytes(32)).fingerprint
    assert bytes(range(32)).hex() not in f"{key} {key.fingerprint}"


def test_a_key_is_made_once_and_read_by_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "pseudonyms.key"
    made = make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_key(path) == made == find_key(path)
    assert [one.name for one in path.parent.iterdir()] == ["pseudonyms.key"]


def test_the_key_lies_where_it_was_said_else_in_the_users_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("DAGMAN_KEY", str(tmp_path / "mine"))
    assert locate_key() == tmp_path / "mine"
    with pytest.raises(SettingsError, match="the key cannot be read"):
        find_key()
    monkeypatch.delenv("DAGMAN_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert locate_key() == tmp_path / "dagman" / "pseudonyms.key"
    assert find_key() is None
    key = make_key(locate_key())
    assert find_key() == key
    with use_key(None):
        assert find_key() is None
    assert find_key() == key


@pytest.mark.parametrize("text", ["", "dagman key 1: abc", "dagman key 1: " + "00" * 31, "password", "\xff"])
def test_what_is_no_key_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "key"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match="is not a dagman key file") as refused:
        find_key(path)
    assert "\n" not in str(refused.value)
    assert text not in str(refused.value) or not text


def test_no_error_shows_the_secret(tmp_path):
    key = make_key(tmp_path / "key")
    assert key.secret.hex() in (tmp_path / "key").read_text()
    assert key.secret.hex() not in json.dumps(key.fingerprint) + repr(key) + str(Path(tmp_path / "key"))
