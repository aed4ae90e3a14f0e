"""Tests of silencing pydicom: its messages quote patient data, so it logs nothing while any thread reads."""

import logging
import threading
import warnings

import pytest

from pipeline.imaging.pydicom_silence import quiet_pydicom


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Enable the logger of pydicom, because libraries that configure logging disable other loggers."""
    monkeypatch.setattr(logging.getLogger("pydicom"), "disabled", False)
    caplog.set_level(logging.WARNING, "pydicom")


def speak() -> None:
    logging.getLogger("pydicom").warning("CANARY")
    warnings.warn("CANARY", stacklevel=1)


def test_pydicom_is_silent_inside_and_logs_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pydicom")  # other modules silence it permanently
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with quiet_pydicom(), quiet_pydicom():
            speak()
        assert (caplog.text, warned) == ("", [])
        speak()
    assert "CANARY" in caplog.text
    assert len(warned) == 1


def test_pydicom_stays_silent_until_the_last_thread_leaves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pydicom")  # other modules silence it permanently
    entered, left = threading.Event(), threading.Event()

    def read() -> None:
        with quiet_pydicom():
            entered.set()
            left.wait(60)

    thread = threading.Thread(target=read)
    with quiet_pydicom():
        thread.start()
        assert entered.wait(60)
    logging.getLogger("pydicom").warning("CANARY")
    assert caplog.text == ""
    left.set()
    thread.join()
    assert logging.getLogger("pydicom").propagate
