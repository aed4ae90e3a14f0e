"""Output of the command line: tables, refusals and progress."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli import main as command_line
from federation.cli.console import (
    counted,
    live,
    print_json,
    print_json_list,
    print_refusal,
    print_table,
    progress_bar,
    say,
)
from federation.runs.progress import Standing
from models.reasons import SETTINGS_FILE
from models.refusal import Refusal


@pytest.mark.parametrize(
    ("command", "following"),
    [
        (("node", "init"), ("node", "check")),
        (("server", "init"), ("server", "start")),
        (("clinic", "init"), ("serve",)),
        (("study", "init"), ("study", "run")),
    ],
)
def test_printed_command_can_be_copied_if_its_path_has_a_space(
    tmp_path: Path, command: tuple[str, ...], following: tuple[str, ...]
) -> None:
    path = tmp_path / "hospital's own" / "name"
    path.parent.mkdir()
    done = CliRunner().invoke(command_line.app, [*command, str(path)])
    assert done.exit_code == 0, done.output
    printed = next(part for part in done.output.split("`") if part.startswith(" ".join(["fedthorax", *following])))
    assert shlex.split(printed)[: 2 + len(following)] == ["fedthorax", *following, str(path)]


def test_noun_fits_its_count() -> None:
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert counted(2, "study", "studies") == "2 studies"


@pytest.mark.parametrize("done", [0, 2])
def test_bar_stays_above_an_error_only_if_something_was_done(capsys: pytest.CaptureFixture[str], done: int) -> None:
    with pytest.raises(Refusal), progress_bar("scans") as report:
        for count in range(done):
            report(count + 1, 5)
        raise Refusal(SETTINGS_FILE, file="site.toml")
    assert ("scans" in capsys.readouterr().err) == bool(done)


def test_table_shows_brackets_unchanged(capsys):
    print_table(["what to do"], [["see [join] of site.toml"]])
    assert "[join]" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_no_word_of_a_narrow_table_is_broken(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    head = ["", "probability", "95 % band", "level", "rule out below", "rule in from"]
    print_table(head, [["pcr_positive", "43.1 %", "40.2 % to 46.5 %", "intermediate", "2.0 %", "50.0 %"]], whole=2)
    shown = capsys.readouterr().out
    assert {"pcr_positive", "43.1", "intermediate", "probability", "below"} <= set(re.split(r"[\s│┃]+", shown))
    assert max(map(len, shown.splitlines())) <= width


SCORE = (
    ["", "probability", "95 % band", "level", "rule out below", "rule in from"],
    [["pcr_positive", "43.1 %", "40.2 % to 46.5 %", "", "2.0 %", "50.0 %"]],
)


@pytest.mark.parametrize("width", [40, 60])
def test_table_without_room_for_its_columns_is_a_list(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(*SCORE, title="A title", whole=2)
    assert capsys.readouterr().out.splitlines() == [
        "A title",
        "pcr_positive",
        "  probability: 43.1 %",
        "  95 % band: 40.2 % to 46.5 %",
        "  rule out below: 2.0 %",
        "  rule in from: 50.0 %",
    ]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_table_shows_every_cell_at_any_width(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(*SCORE, whole=2)
    shown = capsys.readouterr().out
    words = {
        word for name, cell in zip(SCORE[0], SCORE[1][0], strict=True) for word in f"{cell and name} {cell}".split()
    }
    assert words <= set(re.split(r"[\s│┃:]+", shown))
    assert max(map(len, shown.splitlines())) <= width


def test_too_narrow_table_loses_no_character(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    print_table(["level", "reason"], [["intermediate", "uncertain-because-of-its-band"]])
    letters = re.sub(r"[^a-z]", "", capsys.readouterr().out)
    assert len(letters) == len("levelreasonintermediateuncertainbecauseofitsband")


def test_json_refusal_contains_no_private_data(capsys):
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private="/data/ANNA"), as_json=True)
    output = capsys.readouterr()
    refused = json.loads(output.out)["refused"]
    assert set(refused) == {"code", "says", "remedy"}
    assert "ANNA" not in output.out + output.err


def test_text_refusal_shows_the_path_on_stderr_only(capsys):
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private="/data/ANNA"), as_json=False)
    output = capsys.readouterr()
    assert "E_SETTINGS_FILE" in output.err
    assert "/data/ANNA" in output.err
    assert not output.out


def test_text_of_a_server_cannot_control_the_terminal(capsys):
    hostile = "502 \x1b]52;c;aGVsbG8=\x1b\\\x9b2J\u202e"
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private=hostile), as_json=False)
    say(f"line\n{hostile}")
    print_table(["says"], [[hostile]])
    shown = "".join(capsys.readouterr())
    assert "502" in shown
    assert not set("\x1b\x9b\u202e") & set(shown)


def test_refusal_in_the_journal_contains_no_private_data(capsys, monkeypatch):
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    print_refusal(Refusal(SETTINGS_FILE, file="site.toml", private="/data/ANNA"), as_json=False)
    errors = capsys.readouterr().err
    assert "E_SETTINGS_FILE" in errors
    assert "ANNA" not in errors


def test_progress_is_plain_lines_without_a_terminal(capsys):
    with live(lambda: Standing(1, 2, "round 1 of 2")) as tell:
        tell("round 1 of 2 · [loss] 0.5")
    assert capsys.readouterr().err == "round 1 of 2 · [loss] 0.5\n"


def test_progress_on_a_terminal_has_a_bar_below_the_lines(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then assumes a terminal
    with live(lambda: Standing(1, 2, "round 1 of 2 · about 3 min left")) as tell:
        tell("run trial-1")
    shown = capsys.readouterr().err
    assert "run trial-1\n" in shown
    assert "about 3 min left" in shown


def test_closed_output_and_hangup_do_not_end_the_process():
    """Run a separate process, close the reading ends of its output pipes, and send SIGHUP."""
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
    if (first := process.stderr.readline()) != "first\n":
        process.kill()
        pytest.fail(first + process.stderr.read())
    process.stdout.close()
    process.stderr.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(timeout=300) == -signal.SIGHUP, "SIGHUP has its default effect again after the block"


def test_address_that_the_machine_does_not_have_is_named(capsys, monkeypatch) -> None:
    """As on a machine whose loopback has no 127.0.0.1."""

    def fail() -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(command_line, "app", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 1
    assert "E_ADDRESS_MISSING" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            OSError("/lib/libc.so.6: version `GLIBC_2.38' not found (required by x.so)"),
            "version `GLIBC_2.38' not found",
        ),
        (ImportError("libz.so.1: cannot open shared object file: No such file"), "cannot open shared object file"),
    ],
)
def test_library_that_the_machine_cannot_load_is_named(capsys, monkeypatch, error: Exception, shown: str) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"E_LIBRARY: a library of this installation cannot be loaded: {shown}" in said


def test_list_is_printed_item_by_item_as_it_is_printed_at_once(capsys):
    for items in ([], [{}], [1, [], "a\nb\u2028c\x85Zoë"], [{"a": {"b": [1, None]}}, {"c": "d"}]):
        print_json(items)
        at_once = capsys.readouterr().out
        print_json_list(iter(items))
        assert capsys.readouterr().out == at_once
