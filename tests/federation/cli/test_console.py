"""How the command line speaks."""

import json
import os
import signal
import subprocess
import sys

from federation.cli.console import live, print_refusal, print_table
from federation.runs.progress import Standing
from models.reasons import SETTINGS_FILE
from models.refusal import Refusal


def test_a_table_shows_brackets_as_they_are(capsys):
    print_table(["what to do"], [["see [join] of site.toml"]])
    assert "[join]" in capsys.readouterr().out


def test_a_refusal_for_machines_holds_nothing_private(capsys):
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private="/data/ANNA"), as_json=True)
    output = capsys.readouterr()
    refused = json.loads(output.out)["refused"]
    assert set(refused) == {"code", "says", "remedy"}
    assert "ANNA" not in output.out + output.err


def test_a_refusal_for_people_shows_where_on_standard_error_alone(capsys):
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private="/data/ANNA"), as_json=False)
    output = capsys.readouterr()
    assert "E_SETTINGS_FILE" in output.err
    assert "/data/ANNA" in output.err
    assert not output.out


def test_a_journal_gets_nothing_private(capsys, monkeypatch):
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private="/data/ANNA"), as_json=False)
    errors = capsys.readouterr().err
    assert "E_SETTINGS_FILE" in errors
    assert "ANNA" not in errors


def test_without_a_terminal_progress_is_plain_lines(capsys):
    with live(lambda: Standing(1, 2, "round 1 of 2")) as tell:
        tell("round 1 of 2 · [loss] 0.5")
    assert capsys.readouterr().err == "round 1 of 2 · [loss] 0.5\n"


def test_on_a_terminal_a_bar_stands_below_the_lines(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal then
    with live(lambda: Standing(1, 2, "round 1 of 2 · about 3 min left")) as tell:
        tell("run trial-1")
    shown = capsys.readouterr().err
    assert "run trial-1\n" in shown
    assert "about 3 min left" in shown


def test_output_that_nobody_reads_any_more_ends_nothing():
    """In a process of its own, whose output goes into pipes that are closed at their other end; and a hangup comes."""
    code = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup leaves it ignored
from federation.cli.console import outliving_the_terminal, print_json, say
with outliving_the_terminal():
    say("first")
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGHUP)
    for _ in range(3):
        say("nobody reads this")
        print_json({"nobody": "reads this"})
os.kill(os.getpid(), signal.SIGHUP)
"""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin and process.stdout and process.stderr
    assert process.stderr.readline() == "first\n"
    process.stdout.close()
    process.stderr.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(timeout=60) == -signal.SIGHUP, "after the block a hangup is what it was"
