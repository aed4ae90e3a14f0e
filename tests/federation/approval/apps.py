"""Small apps for the tests: their files, and malformed archives that no regular tool creates."""

import hashlib
import io
import random
import zipfile
from collections.abc import Mapping

from flwr.cli.build import build_fab_from_disk

from federation.approval.fab import APP, CONFIG, MANIFEST, build, pack

PYPROJECT = """[project]
name = "small"
version = "1.0"
dependencies = []

[tool.flwr.app]
publisher = "lab"

[tool.flwr.app.components]
serverapp = "small.server_app:app"
clientapp = "small.client_app:app"

[tool.flwr.app.config]
rounds = 1
"""
CLIENT = b"from flwr.clientapp import ClientApp\n\napp = ClientApp()\n"
SERVER = b"from flwr.serverapp import ServerApp\n\napp = ServerApp()\n"
FILES = {
    CONFIG: PYPROJECT.encode(),
    "small/__init__.py": b"",
    "small/client_app.py": CLIENT,
    "small/server_app.py": SERVER,
}


def small_app(**changed: bytes) -> bytes:
    """Build the FAB of the small app. Files are given by name without folder and `.py`."""
    return pack(FILES | {f"small/{name}.py": data for name, data in changed.items()})


def unpack(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(
    files: Mapping[str, bytes],
    *,
    compression: int = zipfile.ZIP_STORED,
    date: tuple[int, int, int, int, int, int] = (2024, 10, 1, 0, 0, 0),
    mode: int = 0o100600,
    comment: bytes = b"",
) -> bytes:
    """Create a zip of these files in this order. A manifest among them is stored unchanged."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, date)
            entry.filename = name  # ZipInfo changes some of the names that an attacker may use
            entry.external_attr = mode << 16
            entry.compress_type = compression
            made.writestr(entry, data)
        made.comment = comment
    return content.getvalue()


def listed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files with a matching manifest."""
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items()]
    return {**files, MANIFEST: "\n".join(lines).encode()}


def altered_apps() -> dict[str, bytes]:
    """Create variants of the own app with a small change in the archive or in one file."""
    own, dice = build(APP), random.Random(50)
    files = {name: data for name, data in unpack(own).items() if name != MANIFEST}
    apps: dict[str, bytes] = {}
    for place in dice.sample(range(len(own)), 20):
        apps[f"byte {place}"] = own[:place] + bytes([own[place] ^ (1 << dice.randrange(8))]) + own[place + 1 :]
    for name, data in files.items():
        apps[f"{name}: a comment at the end"] = pack({**files, name: data + b"# \n"})
        apps[f"{name}: a comment at the start"] = pack({**files, name: b"#\n" + data})
        apps[f"{name}: one space more"] = pack({**files, name: data + b" "})
        apps[f"{name}: other line ends"] = pack({**files, name: data.replace(b"\n", b"\r\n") or b"\r\n"})
        others = {key: value for key, value in files.items() if key != name}
        if name != CONFIG:
            apps[f"{name}: left out"] = pack(others)
            apps[f"{name}: renamed"] = pack({**others, name.replace(".py", "_.py"): data})
    apps["an empty file more"] = pack({**files, "fedthorax_app/more.py": b""})
    apps["a module more"] = pack({**files, "torch.py": b"import os\n"})
    apps["another version"] = pack({**files, CONFIG: files[CONFIG].replace(b'version = "0.1.0"', b'version = "0.1.1"')})
    everything = listed(files)
    apps["other order"] = archive(dict(reversed(everything.items())))
    apps["other dates"] = archive(everything, date=(2024, 10, 1, 0, 0, 2))
    apps["other modes"] = archive(everything, mode=0o100644)
    apps["compressed"] = archive(everything, compression=zipfile.ZIP_DEFLATED)
    apps["a comment of the archive"] = archive(everything, comment=b"x")
    apps["bytes appended"] = own + b"\0"
    apps["bytes before"] = b"#!/bin/sh\n" + own
    apps["cut by a byte"] = own[:-1]
    apps["as Flower builds it"] = build_fab_from_disk(APP)
    apps["nothing"] = b""
    return apps


SMALL = hashlib.sha256(small_app()).hexdigest()
