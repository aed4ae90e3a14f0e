"""Output of `node check` on a terminal of 80 columns."""

import pytest

from federation.cli.doctor_screen import show_checkup
from pipeline.doctor.checkup import Checkup
from pipeline.records.join import JoinRules
from pipeline.system.check_line import Line


def test_checks_are_grouped_and_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = (
        Line("environment", "disk", "fail", "not enough space", "Free space, or move the site's folder."),
        Line("network", "study's server", "ok", "reached"),
        Line("environment", "memory", "ok", "enough"),
    )
    show_checkup(Checkup("ward", 10, JoinRules(), lines))
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= 80
    assert sum("environment" in row for row in rows) == 1
    assert any("study's server" in row for row in rows)
    remedy = " ".join(row.split("│")[4].strip() for row in rows if row.startswith("│")).split()
    assert " ".join(remedy) == "Free space, or move the site's folder."
