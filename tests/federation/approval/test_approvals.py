"""Approvals: an app runs only if the hospital approved it. An app that differs by one byte does not run."""

import hashlib
import json
import os
import stat
from collections.abc import Callable

import pytest

from federation.approval.approvals import Approvals, own_app_sha256
from federation.approval.decisions import KEPT
from federation.approval.fab import APP, MAX_BYTES, build
from federation.ledger.chain import ledger_file, read_lines
from federation.runs.submission import build_app
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.site.reasons import NO_SITE
from pipeline.system.locks import alone
from tests.federation.approval.apps import SMALL, altered_apps, archive, listed, small_app, unpack


def code(action: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refused:
        action()
    return refused.value.code


def test_only_the_own_app_may_run_without_approval(approvals: Approvals) -> None:
    assert own_app_sha256() == build_app()[1]
    assert approvals.verdict(build_app()[1]) == "own"
    assert approvals.verdict(SMALL) == "unknown"
    for odd in ("", own_app_sha256()[:8], own_app_sha256().upper(), own_app_sha256() + "\n", "../" + own_app_sha256()):
        assert approvals.verdict(odd) == "unknown"


def test_site_can_require_approval_of_the_own_app(site: Site) -> None:
    site.settings.gateway.own_app = False
    approvals = Approvals(site)
    assert approvals.verdict(own_app_sha256()) == "unknown"
    approvals.approve(build_app()[0], by="anna")
    assert approvals.verdict(own_app_sha256()) == "approved"


def test_last_decision_applies_in_every_process(site: Site, approvals: Approvals) -> None:
    other = Approvals(site)
    assert approvals.approve(small_app(), by="anna", note="read by two") == SMALL
    assert other.verdict(SMALL) == "approved"
    other.revoke(SMALL, by="ben")
    assert approvals.verdict(SMALL) == "revoked"
    approvals.approve(small_app(), by="anna")
    assert other.verdict(SMALL) == "approved"
    assert [(d.decided, d.by, d.note) for d in other.decisions()] == [
        ("approved", "anna", "read by two"),
        ("revoked", "ben", ""),
        ("approved", "anna", ""),
    ]


def test_own_app_can_be_revoked(approvals: Approvals) -> None:
    approvals.revoke(own_app_sha256(), by="anna")
    assert approvals.verdict(own_app_sha256()) == "revoked"


def test_app_never_received_can_be_revoked(approvals: Approvals) -> None:
    approvals.revoke("0" * 64, by="anna")
    assert approvals.verdict("0" * 64) == "revoked"


def test_ledger_records_every_decision_without_the_person(site: Site, approvals: Approvals) -> None:
    approvals.approve(small_app(), by="anna", note="secret note")
    approvals.revoke(SMALL, by="anna")
    lines = list(read_lines(ledger_file(site)))
    assert [(line.kind, line.direction, line.app) for line in lines] == [
        ("approval", "here", SMALL),
        ("revocation", "here", SMALL),
    ]
    text = ledger_file(site).read_text()
    assert "anna" not in text
    assert "secret" not in text


def test_approval_fails_if_the_ledger_cannot_be_written(approvals: Approvals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.ledger.chain.os.write", lambda handle, data: 0)
    assert code(lambda: approvals.approve(small_app(), by="anna")) == "E_LEDGER_WRITE"
    assert approvals.verdict(SMALL) == "unknown"
    # A revocation takes effect even if the ledger cannot be written.
    assert code(lambda: approvals.revoke(own_app_sha256(), by="anna")) == "E_LEDGER_WRITE"
    assert approvals.verdict(own_app_sha256()) == "revoked"


def test_unreadable_app_cannot_be_approved(approvals: Approvals) -> None:
    hostile = archive(listed({**unpack(small_app()), "../outside.py": b""}))
    assert code(lambda: approvals.approve(hostile, by="anna")) == "E_APP_PATH"
    assert approvals.verdict(hashlib.sha256(hostile).hexdigest()) == "unknown"
    assert approvals.decisions() == []


# --- fifty altered apps -----------------------------------------------------------------------------------


ALTERED = altered_apps()


def test_there_are_fifty_different_altered_apps() -> None:
    assert len(ALTERED) >= 50
    hashes = {hashlib.sha256(content).hexdigest() for content in ALTERED.values()}
    assert len(hashes) == len(ALTERED)
    assert own_app_sha256() not in hashes


@pytest.mark.parametrize("how", ALTERED)
def test_altered_app_is_unknown(approvals: Approvals, how: str) -> None:
    approvals.approve(build(APP), by="anna")  # even if the unaltered app is approved
    assert approvals.verdict(hashlib.sha256(ALTERED[how]).hexdigest()) == "unknown"
    assert approvals.verdict(approvals.keep(ALTERED[how])) == "unknown"


# --- damaged files and failures ---------------------------------------------------------------------------


def decisions(**decision: str) -> str:
    return json.dumps({"decisions": [decision]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        '{"decisions": 1}',
        '{"decisions": [], "more": 1}',
        decisions(app=SMALL, decided="approved"),
        decisions(app="*", decided="approved", at="2026-01-01T00:00Z", by="", note=""),
        decisions(app=SMALL, decided="yes", at="2026-01-01T00:00Z", by="", note=""),
        "\0" * 300,
    ],
)
def test_damaged_approvals_file_blocks_every_app(approvals: Approvals, text: str) -> None:
    approvals.approve(small_app(), by="anna")
    (approvals.folder / "approvals.json").write_text(text)
    for sha256 in (SMALL, own_app_sha256()):
        assert code(lambda sha256=sha256: approvals.verdict(sha256)) == "E_APPROVALS"
    assert code(lambda: approvals.approve(small_app(), by="anna")) == "E_APPROVALS"
    assert code(lambda: approvals.revoke(SMALL, by="anna")) == "E_APPROVALS"
    assert (approvals.folder / "approvals.json").read_text() == text


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_approvals_file_writable_by_others_is_refused(approvals: Approvals, mode: int) -> None:
    approvals.approve(small_app(), by="anna")
    (approvals.folder / "approvals.json").chmod(mode)
    assert code(lambda: approvals.verdict(SMALL)) == "E_APPROVALS"


def test_unreadable_approvals_file_is_refused(approvals: Approvals) -> None:
    (approvals.folder / "approvals.json").mkdir(parents=True)
    assert code(lambda: approvals.verdict(own_app_sha256())) == "E_APPROVALS"


def test_failed_write_keeps_the_previous_decisions(
    site: Site, approvals: Approvals, monkeypatch: pytest.MonkeyPatch
) -> None:
    approvals.approve(small_app(), by="anna")
    before = (approvals.folder / "approvals.json").read_bytes()

    def full(handle: int) -> None:
        if not os.path.samestat(os.fstat(handle), ledger_file(site).stat()):  # writing the ledger succeeds
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.system.atomic_files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        approvals.revoke(SMALL, by="ben")
    assert (approvals.folder / "approvals.json").read_bytes() == before
    assert list(approvals.folder.glob("*.tmp")) == []


def test_concurrent_command_is_refused(site: Site, approvals: Approvals) -> None:
    approvals.approve(small_app(), by="anna")
    with alone(approvals.folder / "lock", NO_SITE):
        assert code(lambda: approvals.revoke(SMALL, by="ben")) == "E_APPROVALS_BUSY"
    assert approvals.verdict(SMALL) == "approved"
    assert [line.kind for line in read_lines(ledger_file(site))] == ["approval"]


def test_decisions_and_apps_are_readable_by_the_owner_only(approvals: Approvals) -> None:
    approvals.approve(small_app(), by="anna")
    assert stat.S_IMODE(approvals.folder.stat().st_mode) == 0o700
    for file in ("approvals.json", f"{SMALL}.fab"):
        assert stat.S_IMODE((approvals.folder / file).stat().st_mode) == 0o600
    assert json.loads((approvals.folder / "approvals.json").read_text())["decisions"][0]["by"] == "anna"


# --- refused apps kept for review -------------------------------------------------------------------------


def test_refused_app_is_kept_for_review_and_stays_unknown(approvals: Approvals) -> None:
    assert approvals.keep(small_app()) == SMALL
    assert approvals.content(SMALL) == small_app()
    assert approvals.verdict(SMALL) == "unknown"


def test_number_of_kept_refused_apps_is_limited_and_decided_apps_are_kept(approvals: Approvals) -> None:
    approvals.approve(small_app(), by="anna")
    revoked = approvals.keep(b"revoked")
    approvals.revoke(revoked, by="anna")
    for age, path in enumerate(approvals.kept()):
        os.utime(path, (age, age))
    came = [approvals.keep(f"app {k}".encode()) for k in range(KEPT + 10)]
    again = approvals.keep(b"app 10")  # the oldest kept app is received again
    more = [approvals.keep(f"more {k}".encode()) for k in range(5)]
    kept = {path.stem for path in approvals.kept()}
    assert kept == {SMALL, revoked, again, *came[-(KEPT - 6) :], *more}
    assert len(kept) == KEPT + 2


def test_app_over_the_size_limit_is_not_kept(approvals: Approvals) -> None:
    content = bytes(MAX_BYTES + 1)
    assert approvals.keep(content) == hashlib.sha256(content).hexdigest()
    assert approvals.kept() == []


def test_app_is_refused_even_if_the_disk_is_full(approvals: Approvals, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.system.atomic_files.os.fsync", full)
    assert approvals.keep(small_app()) == SMALL
    assert approvals.kept() == []


def test_changed_kept_file_is_not_returned_as_the_app(approvals: Approvals) -> None:
    approvals.keep(small_app())
    (approvals.folder / f"{SMALL}.fab").write_bytes(small_app(more=b""))
    assert approvals.content(SMALL) is None
    assert approvals.content("0" * 64) is None
