"""Pack and run the benchmarks' small Flower apps on our own server, and start bare SuperNodes."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab

from federation.approval import fab
from federation.gateway.flower_objects import object_id
from federation.node import sandbox
from federation.runs.submission import status
from federation.superlink.control import control
from federation.system.process import LOOPBACK, flower_command
from models.refusal import Refusal
from models.settings import with_value
from pipeline.site.folder import Site

Config = Mapping[str, str | int | bool]
_PYPROJECT = """\
[project]
name = "bench-app"
version = "0.1.0"
description = "What a benchmark asks of a server and its sites."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "bench_app.server_app:app"
clientapp = "bench_app.{client}:app"

[tool.flwr.app.config]
{config}
"""


def packed(modules: Mapping[str, str], config: Config) -> bytes:
    """Pack an app. `modules`: the code of server_app and, if there is one, client_app; `config`: defaults."""
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in config.items())
    client = "client_app" if "client_app" in modules else "server_app"  # Flower requires one even if it is not called
    files = {f"bench_app/{name}.py": code for name, code in {"__init__": "", **modules}.items()}
    files["pyproject.toml"] = _PYPROJECT.format(client=client, config=settings)
    return fab.pack({name: text.encode() for name, text in files.items()})


def start(server: Path, app: bytes, config: Config) -> int:
    """Start a run of the app; return its id."""
    request = StartRunRequest(
        fab=Fab(hash_str=object_id(app), content=app), override_config=user_config_to_proto(dict(config))
    )
    with control(server) as client:
        return int(client.StartRun(request).run_id)


def wait(server: Path, run_id: int) -> None:
    """Wait until the run has ended. Raises RuntimeError with the end of its log if it did not complete."""
    while not (ended := status(server, run_id)).startswith("finished"):
        time.sleep(0.5)
    if ended != "finished:completed":
        raise RuntimeError(f"{ended}:\n{(server / 'logs' / 'superexec.log').read_text()[-2000:]}")


def supernode(site: Site, *, superlink_port: int, certificate: Path, port: int) -> list[str]:
    """Return the command of Flower's SuperNode for a site with a key; `port`: the SuperNode's own port."""
    return [
        flower_command("flower-supernode"),
        f"--superlink={LOOPBACK}:{superlink_port}",
        f"--root-certificates={certificate}",
        f"--auth-supernode-private-key={site.node_key}",
        f"--host={LOOPBACK}",
        f"--port={port}",
    ]


def with_sandbox(site: Site) -> Site:
    """Return the site with a sandbox, or without one if this machine supports none."""
    try:
        sandbox.available(site)
    except Refusal:
        settings = site.folder / "site.toml"
        text = with_value(settings.read_text(), "sandbox", "kind", '"none"')
        settings.write_text(with_value(text, "sandbox", "accepted_by", '"the benchmark"'))
    return Site.open(site.folder)
