"""Fixtures that the tests of several rooms share."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.app.message.arrayrecord as flower_arrays
import pytest

from federation.approval.approvals import Approvals
from federation.coordinator import connected_sites, server_app
from federation.superlink.nodes import Site as Node
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.whole_run import NAMES


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="hospital-a"))


@pytest.fixture
def approvals(site: Site) -> Approvals:
    return Approvals(site)


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's Bulyan collects garbage at every array it takes: a fifth of a second each beside torch's objects."""
    monkeypatch.setattr(flower_arrays, "gc", SimpleNamespace(collect=lambda: 0))


class NoTracker:
    """In MLflow's place where a test is not about it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., str]:
        return lambda *_, **__: "1"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "server.toml").write_text("port = 1\n")
    monkeypatch.setattr(
        connected_sites, "registered_sites", lambda _: [Node(name, node, True) for node, name in NAMES.items()]
    )
    monkeypatch.setattr(connected_sites, "enrolled_patients", lambda _: {"north": None, "south": 30, "west": 1000})
    monkeypatch.setattr(server_app, "Tracker", NoTracker)
    (tmp_path / "runs" / "trial-1").mkdir(parents=True)
    return tmp_path
