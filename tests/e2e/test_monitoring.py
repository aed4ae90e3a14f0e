"""Every metric that the alerts and the dashboard name is served by a real node, server or clinic."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient

from federation.system.process import free_port
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from tests.e2e.conftest import Command, enter, ok

pytestmark = pytest.mark.e2e
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"


def served(text: str) -> set[str]:
    """Return the names of all series that a text announces, also those without a sample yet."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    parts = {"summary": ("_sum", "_count"), "histogram": ("_sum", "_count", "_bucket")}
    return {name + end for name, kind in kinds.items() for end in parts.get(kind, ("",))}


def named(expressions: list[str]) -> set[str]:
    return {name for each in expressions for name in re.findall(r"\bfedthorax_\w+", each)}


def of_clinic(folder: Path) -> str:
    folder.mkdir()
    clinic = Clinic.open(folder)
    client = TestClient(make_app(clinic), base_url="http://localhost:8765")
    token = Tokens(folder).make("a scraper", "read", by="test")
    return client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).text


def test_alerts_and_dashboard_name_only_metrics_that_are_served(tmp_path: Path, start: Callable[..., Command]) -> None:
    site, folder, ports = tmp_path / "site", tmp_path / "server", (free_port(), free_port())
    ok("server", "init", folder, "--port", str(free_port()))
    config = (folder / "server.toml").read_text()
    (folder / "server.toml").write_text(config.replace("monitoring_port = 0", f"monitoring_port = {ports[0]}"))
    start("server", "start", folder).wait_for("The server is up", seconds=300)
    ok("node", "init", site, "--name", "north")
    enter(site, folder, "north")
    settings = (site / "site.toml").read_text()
    settings = settings.replace("\nport = 0\n", f"\nport = {ports[1]}\n")
    sandbox = 'kind = "bwrap"\naccepted_by = ""', 'kind = "none"\naccepted_by = "a test without patients"'
    (site / "site.toml").write_text(settings.replace(*sandbox))
    start("node", "start", site).wait_for("the node is online", seconds=300)

    server, node = (httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text for port in ports)
    assert 'fedthorax_server_site_online{site="north"} 1.0' in server
    assert "fedthorax_node_connected 1.0" in node
    for port in ports:
        assert httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=60).json()["ready"] is True
    rules = yaml.safe_load((FOLDER / "fedthorax.rules.yml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    known = served(server) | served(node) | served(of_clinic(tmp_path / "clinic"))
    # Not yet: nothing was refused, and nothing was ingested.
    later = {"fedthorax_node_last_refusal_timestamp_seconds", "fedthorax_node_last_ingest_timestamp_seconds"}
    assert named(alerts) | named(shown) <= known | later | {"fedthorax_node_patients"}
    jobs = {job["job_name"] for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]}
    assert {name for each in alerts for name in re.findall(r'job="([^"]+)"', each)} <= jobs
