"""The monthly overview of the ledger, and the ledger heads in the record of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from federation.ledger.chain import PASSED, Entry, Head, Ledger, Line, read_lines, verify
from federation.ledger.view import heads_in_record, month_of, reason_of, remedy
from models.refusal import Refusal


def line(time: str, **changes: Any) -> Line:
    content: dict[str, Any] = {
        "run": "7",
        "round": 1,
        "direction": "out",
        "kind": "train",
        "bytes": 100,
        "digest": "",
        "app": "a" * 64,
        "policy": "",
        "verdict": PASSED,
        "number": 1,
        "prev": "",
        "sha256": "",
    }
    return Line(**{**content, "time": time, **changes})


LINES = [
    line("2026-10-31T23:59:59.999+00:00"),
    line("2026-11-01T00:00:00.000+00:00"),
    line("2026-11-01T08:00:00.000+00:00", bytes=50),
    line("2026-11-01T09:00:00.000+00:00", round=2, kind="error"),
    line("2026-11-01T10:00:00.000+00:00", direction="in", kind="app", round=None, bytes=5000),
    line("2026-11-02T10:00:00.000+00:00", direction="in", kind="app", bytes=3, verdict="E_APP_UNKNOWN"),
    line("2026-11-03T10:00:00.000+00:00", verdict="E_REPLY_NOT_FINITE", bytes=7),
    line("2026-11-04T10:00:00.000+00:00", verdict="E_REPLY_NOT_FINITE", bytes=7),
    line("2026-11-05T10:00:00.000+00:00", direction="here", kind="approval", run="", round=None, bytes=0),
    line("2026-11-06T10:00:00.000+00:00", direction="here", kind="torn line", bytes=9, verdict="W_LEDGER_TORN"),
    line("2026-12-01T00:00:00.000+00:00"),
]


def test_month_is_grouped_by_run_and_round() -> None:
    month = month_of(LINES, "2026-11")
    assert [(p.run, p.round, p.kind, p.count, p.bytes) for p in month.left] == [
        ("7", 1, "train", 2, 150),
        ("7", 2, "error", 1, 100),
    ]
    assert (month.left[0].first, month.left[0].last) == (LINES[1].time, LINES[2].time)
    assert [(p.round, p.kind, p.bytes) for p in month.came] == [(None, "app", 5000)]
    assert [(p.direction, p.verdict, p.count) for p in month.refused] == [
        ("in", "E_APP_UNKNOWN", 1),
        ("out", "E_REPLY_NOT_FINITE", 2),
    ]
    assert [p.kind for p in month.here] == ["approval", "torn line"]


def test_totals_count_passed_and_refused_messages() -> None:
    assert month_of(LINES, "2026-11").totals == {
        "left": {"count": 3, "bytes": 250},
        "came": {"count": 1, "bytes": 5000},
        "refused": {"count": 3, "bytes": 17},
    }
    assert month_of(LINES, "2026-09").totals["left"] == {"count": 0, "bytes": 0}


def test_each_refusal_has_its_remedy() -> None:
    content = json.loads(json.dumps(month_of(LINES, "2026-11").to_json()))
    codes = {entry["code"]: entry for entry in content["codes"]}
    assert codes["E_REPLY_NOT_FINITE"]["count"] == 2
    assert codes["E_REPLY_NOT_FINITE"]["remedy"].startswith("Training diverged")


def test_code_of_another_release_is_shown() -> None:
    month = month_of([line("2026-11-01", verdict="E_OF_TOMORROW")], "2026-11")
    assert month.codes == {"E_OF_TOMORROW": 1}
    assert reason_of("E_OF_TOMORROW") is None
    assert "Another release" in remedy(None)
    assert "E_OF_TOMORROW" in json.dumps(month.to_json())


@pytest.mark.parametrize("code", ["E_REPLY_NOT_FINITE", "E_SITE_KEY", "E_SETTINGS_FILE"])
def test_codes_of_all_three_packages_are_known(code: str) -> None:
    reason = reason_of(code)
    assert reason is not None
    assert reason.code == code


def test_record_of_a_run_gives_only_the_heads_of_this_site(tmp_path: Path) -> None:
    record = tmp_path / "history.json"
    record.write_text(
        json.dumps(
            [
                {"round": 1, "sites": ["a"], "ledger": {"a": {"head": "1" * 64, "lines": 3}}},
                {"round": 2, "lost": True},
                {"round": 3, "ledger": {"a": {"head": "2" * 64, "lines": 9}, "b": {"head": "3" * 64, "lines": 1}}},
            ]
        )
    )
    assert heads_in_record(record, "a") == [Head(3, "1" * 64), Head(9, "2" * 64)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        "[1]",
        "[]",
        '[{"ledger": {"b": {"head": "1", "lines": 1}}}]',
        '[{"ledger": {"a": {"head": 1, "lines": 1}}}]',
        '[{"ledger": {"a": {"head": "1", "lines": "1"}}}]',
        '[{"ledger": {"a": 5}}]',
        "[" * 100_000,
        "\xff",
    ],
)
def test_invalid_record_is_refused(tmp_path: Path, text: str) -> None:
    record = tmp_path / "history.json"
    record.write_bytes(text.encode("latin-1"))
    for path in (record, tmp_path / "absent", tmp_path):
        with pytest.raises(Refusal) as refused:
            heads_in_record(path, "a")
        assert refused.value.code == "E_LEDGER_RECORD"


def test_ledger_with_errors_of_old_and_new_releases_is_readable(tmp_path: Path) -> None:
    """A ledger with error lines without codes (older releases) and with codes is valid and readable."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for kind in ("error", "error E_SITE_FAILED", "error E_TOO_FEW_PATIENTS", "error E_SITE_FAILED"):
        head = ledger.append(Entry("7", 2, "out", kind, 300, "d" * 64, "a" * 64, "p" * 64, PASSED))
    assert verify(path) == head
    lines = list(read_lines(path))
    month = month_of(lines, lines[0].time[:7])
    assert [(p.kind, p.count) for p in month.left] == [
        ("error", 1),
        ("error E_SITE_FAILED", 2),
        ("error E_TOO_FEW_PATIENTS", 1),
    ]
    assert month.codes == {}  # these errors left the site; they are not refusals of the gateway
