"""Copies of the clinic's database from before an upgrade hold patients, and are deleted after a time; so are logs."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.clinic import service
from pipeline.clinic.retention import COPY_DAYS, forget_old
from pipeline.clinic.settings import Clinic
from pipeline.system.child_logs import MAX_LOG_BYTES


@pytest.mark.parametrize(
    ("keep", "age_days", "is_kept"),
    [
        ("", COPY_DAYS - 1, True),
        ("", COPY_DAYS + 1, False),
        ("answers_days = 10", 9, True),
        ("answers_days = 10", 11, False),
    ],
)
def test_copy_of_an_older_format_is_deleted_in_time(tmp_path: Path, keep: str, age_days: int, is_kept: bool) -> None:
    (tmp_path / "clinic.toml").write_text(f"[keep]\n{keep}\n")
    clinic = Clinic.open(tmp_path)
    with clinic.store() as store:
        copy = tmp_path / "clinic.sqlite.v1"
        copy.write_bytes(b"patients")
        then = time.time() - age_days * 24 * 3600
        os.utime(copy, (then, then))
        forget_old(clinic, store)
        assert copy.exists() == is_kept
        assert (tmp_path / "clinic.sqlite").exists()


def test_log_of_a_worker_that_runs_for_long_is_cut(tmp_path: Path) -> None:
    clinic = Clinic.open(tmp_path)
    log, stopping = clinic.logs / service.WORKER_LOG, iter([False, True])
    log.write_bytes(b"x" * MAX_LOG_BYTES + b"newest line\n")
    service.keep_tidy(clinic, SimpleNamespace(wait=lambda seconds: next(stopping)))  # type: ignore[arg-type]
    assert log.stat().st_size == 0
    assert log.with_name("worker.log.1").read_bytes().endswith(b"newest line\n")
