"""What a node is started with, and how its log is understood."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from federation import node, reasons
from federation.node import start_node, wait_online
from models.refusal import Refusal


class RecordedProcess:
    """Stands where a process would be started, and keeps what it would be started with."""

    def __init__(self, name: str, command: list[str], *, log: Path, environment: dict[str, str]) -> None:
        self.command, self.environment = command, environment


class EndedProcess:
    """A node that has printed `text` and will print no more."""

    def __init__(self, text: str) -> None:
        self.text = text

    def output(self) -> str:
        return self.text

    def wait_until(self, ready: Callable[[], int | None], *, seconds: float) -> int:
        if answer := ready():
            return answer
        raise Refusal(reasons.NOT_STARTED, private="its log", process="the node", log="node.log")


def test_the_sites_folder_is_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "Process", RecordedProcess)
    site = tmp_path / "site"
    started: Any = start_node(
        site,
        server="study.example.org:8443",
        ca_certificate=tmp_path / "ca.crt",
        private_key=tmp_path / "key",
        log=site / "logs" / "node.log",
    )
    flags = started.command[1:]
    assert not any(str(site) in flag for flag in flags)
    assert started.environment["FEDTHORAX_SITE_DIR"] == str(site)
    assert started.environment["FLWR_HOME"] == f"{site}/flower_home"
    assert {
        "--superlink=study.example.org:8443",
        f"--root-certificates={tmp_path}/ca.crt",
        f"--auth-supernode-private-key={tmp_path}/key",
        "--host=127.0.0.1",
    } <= set(flags)


def test_online_is_when_the_server_has_named_the_node() -> None:
    assert wait_online(EndedProcess("INFO:  SuperNode ID: 11763002427470149475\n")) == 11763002427470149475  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("retrying\nExit Code: 305\n[code: 2004] Node activation failed", "E_NOT_ENROLLED"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "E_SERVER_UNTRUSTED"),
        ("Connection attempt failed, retrying in 3.40 seconds", "E_SERVER_SILENT"),
        ("Exit Code: 302\nUnable to parse the private key file.", "E_NOT_STARTED"),
    ],
)
def test_the_cause_is_named(text: str, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        wait_online(EndedProcess(text))  # type: ignore[arg-type]
    assert refused.value.code == code
    assert refused.value.says
    assert refused.value.private == "its log"
