"""Proves that Ctrl-C, a time limit and a lost connection stop a command in one way, and that nohup keeps it going."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from dagman.cli import application
from dagman.records.stopping import catch_stops
from dagman.scans.phantom import write_cohort
from dagman.store.writer import prepare_store

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers():
    """Those of the tests themselves, put back, with SIGHUP as in a terminal."""
    before = {number: signal.getsignal(number) for number in STOPS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_each_signal_interrupts_and_what_was_set_before_is_put_back(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), catch_stops():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_is_told_and_the_second_interrupts_at_once(number):
    heard = []
    with catch_stops(), catch_stops(lambda number: heard.append("stop")):
        os.kill(os.getpid(), number)
        assert heard == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert heard == ["stop"]


def test_a_lost_connection_is_ignored_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard = []
    with catch_stops(lambda number: heard.append("stop")):
        os.kill(os.getpid(), signal.SIGHUP)
    assert heard == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_thread_leaves_signals_to_the_main_one():
    found = []

    def work():
        with catch_stops(lambda number: None):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize("number", STOPS)
def test_every_command_ends_with_one_line(tmp_path, monkeypatch, capsys, number):
    write_cohort(tmp_path / "cohort", patients=2, seed=0, spacing=8.0)
    prepare_store(tmp_path / "cohort" / "scans", tmp_path / "store", workers=1)
    monkeypatch.setattr("dagman.store.upkeep.verification.verify_store", lambda store, notify: os.kill(os.getpid(), number))
    monkeypatch.setattr(sys, "argv", ["dagman", "store", "verify", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as caught:
        application.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == "dagman: stopped; repeat the command to resume."
