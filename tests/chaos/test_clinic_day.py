"""A hospital's day in fast forward, with few scans: none is lost or answered twice, whatever is killed meanwhile.

`python benchmarks/run.py clinic_day` plays the whole day.
"""

import sys
from pathlib import Path

import pytest

from tests.e2e.orthanc import require_orthanc

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_each_scan_of_a_day_has_one_answer_or_one_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PACS is down once and the service is killed twice, with scans on their way."""
    require_orthanc()
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from clinic_day import Day, play
    from clinic_day_scans import ANSWERED

    day = Day(scans=16, speed=600, pacs_down_h=[(11, 13)], kills_h=[9, 15])
    played = play(day, tmp_path, lambda line: None)
    assert played.faults() == []
    assert len(played.scans) == 16
    assert len(played.answers) == sum(scan.kind in ANSWERED for scan in played.scans.values())
