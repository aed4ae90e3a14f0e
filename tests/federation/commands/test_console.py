"""How the command line speaks."""

import json
import os

from federation.commands.console import print_refusal, print_table
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
