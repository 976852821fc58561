"""What journeys share: a command line in the test's own process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from dagman.cli import application


@pytest.fixture
def call_dagman(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line in this process, which has its libraries loaded: exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dagman", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            application.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call
