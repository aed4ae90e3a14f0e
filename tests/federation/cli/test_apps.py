"""Tests of the commands `fedthorax node apps | approve | revoke | ledger`."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from federation.approval import fab
from federation.approval.approvals import Approvals, own_app_sha256
from federation.cli.node import app as node
from federation.ledger.chain import Entry, Ledger, ledger_file
from models.refusal import Refusal
from pipeline.site.folder import Site
from tests.federation.approval.apps import FILES, SMALL, archive, listed, small_app


def run(command: str, site: Site, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(node, [command, str(site.folder), *arguments], input=answer)


def done(command: str, site: Site, *arguments: str, answer: str = "") -> str:
    result = run(command, site, *arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(command: str, site: Site, *arguments: str) -> str:
    result = run(command, site, *arguments)
    assert isinstance(result.exception, Refusal), result.output
    return result.exception.code


# --- apps -------------------------------------------------------------------------------------------------


def test_apps_lists_the_own_app_and_received_apps(site: Site, approvals: Approvals) -> None:
    approvals.keep(small_app())
    approvals.revoke("0" * 64, by="anna", note="heard bad things")
    listed_apps: list[dict[str, Any]] = json.loads(done("apps", site, "--json"))
    assert {a["app"]: (a["name"], a["verdict"]) for a in listed_apps} == {
        own_app_sha256(): ("fedthorax/fedthorax-app 0.1.0", "own"),
        SMALL: ("lab/small 1.0", "unknown"),
        "0" * 64: ("E_APP_UNKNOWN", "revoked"),
    }
    text = done("apps", site)
    assert SMALL[:12] in text
    assert "unknown" in text


def test_unreadable_app_is_listed_with_its_code(site: Site, approvals: Approvals) -> None:
    sha256 = approvals.keep(b"no archive")
    assert {a["app"]: a["name"] for a in json.loads(done("apps", site, "--json"))}[sha256] == "E_APP_ARCHIVE"
    assert refused("apps", site, "--show", sha256) == "E_APP_ARCHIVE"
    assert refused("approve", site, sha256, "--yes") == "E_APP_ARCHIVE"


def test_app_is_shown_with_findings_and_difference(site: Site, approvals: Approvals) -> None:
    sha256 = approvals.keep(small_app(more=b"import socket\n"))
    text = done("apps", site, "--show", sha256[:8].upper())
    assert "small/more.py:1  socket  (network" in text
    assert "This list proves nothing" in text
    assert f"difference from {own_app_sha256()[:12]}" in text
    assert "+import socket" in text
    content = json.loads(done("apps", site, "--show", sha256, "--json"))
    assert content["verdict"] == "unknown"
    assert {"file": "small/more.py", "line": 1, "what": "socket"}.items() <= content["findings"][0].items()


def test_app_content_is_escaped_in_the_terminal(site: Site, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    file = tmp_path / "evil.fab"
    config = FILES["pyproject.toml"].replace(b"dependencies = []", b'dependencies = ["a\\u001b[31m"]')
    files = {**FILES, "pyproject.toml": config, f"small/{evil}.py": f"import socket  # {evil}\n".encode()}
    file.write_bytes(archive(listed(files)))
    result = run("apps", site, "--show", str(file))
    assert result.exit_code == 0
    assert not {c for c in result.output if not c.isprintable()} - {"\n"}
    assert "\\x1b]0;owned\\x07" in result.output


def test_app_on_disk_can_be_shown(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "small.fab"
    file.write_bytes(small_app())
    assert json.loads(done("apps", site, "--show", str(file), "--json"))["sha256"] == SMALL
    assert json.loads(done("apps", site, "--show", str(fab.APP), "--json"))["sha256"] == own_app_sha256()


def test_unknown_large_or_ambiguous_app_is_refused(site: Site, approvals: Approvals, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("0" * 8, "0" * 64, "absent.fab", str(tmp_path / "pipe"), "abc"):
        assert refused("apps", site, "--show", name) == "E_APP_UNKNOWN"
    (tmp_path / "large.fab").write_bytes(bytes(fab.MAX_BYTES + 5))
    for command in ("approve", "revoke"):
        assert refused(command, site, str(tmp_path / "large.fab")) == "E_APP_SIZE"
    approvals.revoke(f"{'1' * 10}{'0' * 54}", by="")
    approvals.revoke(f"{'1' * 10}{'2' * 54}", by="")
    assert refused("revoke", site, "1" * 10) == "E_APP_AMBIGUOUS"


# --- approve and revoke -----------------------------------------------------------------------------------


def test_app_is_shown_and_approved_after_confirmation(site: Site, approvals: Approvals) -> None:
    approvals.keep(small_app(more=b"import socket\n"))
    sha256 = hashlib.sha256(small_app(more=b"import socket\n")).hexdigest()
    result = run("approve", site, sha256[:10], "--note", "read it", answer="y\n")
    assert result.exit_code == 0
    assert "small/more.py:1  socket" in result.output
    assert approvals.verdict(sha256) == "approved"
    decision = approvals.decision(sha256)
    assert decision is not None
    assert decision.note == "read it"
    assert decision.by


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_app_is_not_approved_without_confirmation(site: Site, approvals: Approvals, answer: str) -> None:
    approvals.keep(small_app())
    assert run("approve", site, SMALL, answer=answer).exit_code == 1
    assert approvals.verdict(SMALL) == "unknown"


def test_app_from_a_file_is_compared_with_the_last_approved_app(
    site: Site, approvals: Approvals, tmp_path: Path
) -> None:
    file = tmp_path / "app.fab"
    file.write_bytes(small_app())
    done("approve", site, str(file), "--yes")
    file.write_bytes(small_app(more=b"x = 1\n"))
    shown = done("approve", site, str(file), "--yes")
    assert f"difference from {SMALL[:12]}" in shown
    assert "+x = 1" in shown
    assert "ClientApp" not in shown  # unchanged since the last approved app
    assert approvals.verdict(hashlib.sha256(file.read_bytes()).hexdigest()) == "approved"


def test_revoked_app_is_not_used_for_comparison(site: Site, approvals: Approvals) -> None:
    approvals.approve(small_app(), by="")
    done("revoke", site, SMALL)
    approvals.keep(small_app(more=b""))
    assert f"difference from {own_app_sha256()[:12]}" in done("apps", site, "--show", approvals.kept()[0].stem)


def test_own_app_can_be_revoked_and_approved_again(site: Site, approvals: Approvals) -> None:
    done("revoke", site, own_app_sha256()[:8], "--note", "until the audit")
    assert approvals.verdict(own_app_sha256()) == "revoked"
    done("approve", site, own_app_sha256(), "--yes")
    assert approvals.verdict(own_app_sha256()) == "approved"


@pytest.mark.parametrize("digits", [8, 63])
def test_first_digits_of_a_hash_are_not_enough_without_a_question(
    digits: int, site: Site, approvals: Approvals
) -> None:
    """Somebody who knows them can make another app that begins with them, and the reviewed one may be gone."""
    sha256 = own_app_sha256()
    approvals.revoke(sha256, by="")
    assert refused("approve", site, sha256[:digits].upper(), "--yes") == "E_APP_DIGITS"
    assert approvals.verdict(sha256) == "revoked"


def test_full_hash_can_be_revoked_before_the_app_is_received(site: Site, approvals: Approvals) -> None:
    done("revoke", site, "A" * 64)
    assert approvals.verdict("a" * 64) == "revoked"


# --- the ledger -------------------------------------------------------------------------------------------


@pytest.fixture
def book(site: Site) -> Ledger:
    made = Ledger(ledger_file(site))
    for number in range(1, 5):
        made.append(Entry("7", number, "out", "train", 1000, "", SMALL, "", "passed"))
    made.append(Entry("7", 5, "out", "train\x1b[2J", 1000, "", SMALL, "", "E_REPLY_NOT_FINITE"))
    return made


def test_ledger_shows_month_with_totals_and_refusals(site: Site, book: Ledger) -> None:
    result = run("ledger", site)
    assert result.exit_code == 0
    assert "4 messages, 4,000 bytes" in result.output
    assert "E_REPLY_NOT_FINITE" in result.output
    assert "\x1b" not in result.output
    content = json.loads(done("ledger", site, "--json", "--month", f"{datetime.now(UTC):%Y-%m}"))
    assert content["totals"]["left"] == {"count": 4, "bytes": 4000}
    assert json.loads(done("ledger", site, "--json", "--month", "2020-01"))["left"] == []


def test_invalid_month_is_a_usage_error(site: Site, book: Ledger) -> None:
    for month in ("2026", "2026-13", "2026-1", ".*"):
        assert run("ledger", site, "--month", month).exit_code == 2


def test_verify_reports_an_intact_ledger(site: Site, book: Ledger) -> None:
    assert json.loads(done("ledger", site, "--verify", "--json")) == {
        "lines": 5,
        "head": book.head.sha256,
        "known_heads": 0,
    }
    assert book.head.sha256 in run("ledger", site, "--verify").output


def test_changed_ledger_is_refused(site: Site, book: Ledger) -> None:
    file = ledger_file(site)
    file.write_bytes(file.read_bytes().replace(b'"bytes":1000', b'"bytes":1', 1))
    assert refused("ledger", site, "--verify") == "E_LEDGER_BROKEN"
    assert refused("ledger", site) == "E_LEDGER_BROKEN"


def test_truncated_ledger_is_detected_with_a_record(site: Site, book: Ledger, tmp_path: Path) -> None:
    record = tmp_path / "history.json"
    told = {"head": book.head.sha256, "lines": book.head.lines}
    record.write_text(json.dumps([{"round": 1, "ledger": {"hospital-a": told}}, {"round": 2}]))
    assert json.loads(done("ledger", site, "--record", str(record), "--json"))["known_heads"] == 1
    lines = ledger_file(site).read_bytes().splitlines(keepends=True)
    ledger_file(site).write_bytes(b"".join(lines[:-1]))
    assert json.loads(done("ledger", site, "--verify", "--json"))["lines"] == 4
    assert refused("ledger", site, "--record", str(record)) == "E_LEDGER_CUT"
    record.write_text(json.dumps([{"round": 1, "ledger": {"hospital-b": told}}]))
    assert refused("ledger", site, "--record", str(record)) == "E_LEDGER_RECORD"


def test_new_site_has_an_empty_ledger(site: Site) -> None:
    assert json.loads(done("ledger", site, "--verify", "--json"))["lines"] == 0
    assert run("ledger", site).exit_code == 0
