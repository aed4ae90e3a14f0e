"""A real PostgreSQL server for a test."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import pytest

from federation.system.process import LOOPBACK, Process

START_SECONDS = 120


def start_postgres(
    started: ExitStack, port: int, *, user: str, password: str, tls: tuple[Path, Path] | None = None
) -> Process:
    """Start PostgreSQL. It refuses to run as root: in that case, run it as the user of its package.

    `tls`: certificate and key of the server.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    is_root = os.geteuid() == 0
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"] if is_root else []
    folder = Path(mkdtemp(prefix="postgres-"))  # other users cannot read pytest's temporary folders
    started.callback(shutil.rmtree, folder)
    secret = folder / "password"
    secret.write_text(password)
    own = [folder, secret]
    options = ["-c", "fsync=off"]
    for name, path in zip(("cert", "key"), tls or (), strict=False):
        copy = Path(shutil.copy(path, folder / f"server.{name}"))
        copy.chmod(0o600)
        own.append(copy)
        options += ["-c", f"ssl_{name}_file={copy}"]
    options += ["-c", "ssl=on"] if tls else []
    for path in own if is_root else []:
        shutil.chown(path, "postgres")
    data, quick = folder / "data", ["--no-sync", "--no-locale", "--encoding=UTF8"]
    users = [f"--username={user}", f"--pwfile={secret}", "--auth=scram-sha-256"]
    log = folder / "log"
    initdb = [*as_user, str(programs[-1] / "initdb"), f"--pgdata={data}", *users, *quick]
    with Process("initdb", initdb, log=log, environment=os.environ) as made:
        assert made.wait() == 0, made.output()
    postgres = [str(programs[-1] / "postgres"), "-D", str(data), "-h", LOOPBACK, "-p", str(port), "-k", str(folder)]
    server = Process("PostgreSQL", [*as_user, *postgres, *options], log=log, environment=os.environ)
    started.enter_context(server)
    server.wait_until(lambda: "ready to accept connections" in server.output(), seconds=START_SECONDS)
    return server
