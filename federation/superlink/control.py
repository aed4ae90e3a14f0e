"""Access to the running server for commands on its machine: the server's settings and Flower's Control API.

The Control API has no authentication (Flower provides that only in its enterprise edition): everybody who can reach it
can enrol nodes and start code. Therefore it listens only on loopback, and the ingress does not forward to it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from federation.superlink import reasons
from federation.system.process import LOOPBACK, without_proxy
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.system.folder_format import check_folder

if TYPE_CHECKING:
    import httpx

    from federation.flower.control import ControlHttpClient


# The header with which federation.superlink.fleet_binding tells the ingress that it refused a request.
REFUSED_HEADER = "x-fedthorax-refused"
# In a server's folder, from federation.migration: its study continues elsewhere; an export or import is in progress.
MOVED = "MOVED"
EXPORTING = "EXPORTING"
IMPORTING = ".importing"
# HOST:PORT, to which nodes connect; it may be empty. Read from archives of other servers, so it is strict.
ADDRESS = r"^$|^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$"


class ServerConfig(BaseModel):
    """`server.toml`: where the study's server listens.

    `superlink_port`: the port of Flower's SuperLink on loopback. Without it, as in a simulation, there is no ingress
    and the SuperLink uses `port`. `simulated_sites`: set only for a simulation. `monitoring_port`: port on loopback of
    health and metrics; 0 for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(default="", pattern=ADDRESS)
    host: str = LOOPBACK
    port: int = Field(ge=1, le=65535)
    superlink_port: int = Field(default=0, ge=0, le=65535)
    socket: Path | None = None
    simulated_sites: int = Field(default=0, ge=0)
    monitoring_port: int = Field(default=0, ge=0, le=65535)

    @property
    def control_port(self) -> int:
        """The port on which the SuperLink listens on loopback."""
        return self.superlink_port or self.port


def ca_certificate(folder: Path) -> Path:
    """Return the path of the certificate that every node of this server pins."""
    return folder / "certificates" / "ca.crt"


def loopback_certificate(folder: Path) -> Path:
    """Return the path of the certificate that the SuperLink uses on loopback, and that its clients there pin."""
    return folder / "certificates" / "loopback.crt"


def read_server_config(folder: Path) -> ServerConfig:
    """Read the settings of the server in `folder`.

    Raises Refusal: E_NO_SERVER, E_SERVER_MOVED, E_EXPORT_UNFINISHED, E_IMPORT_UNFINISHED, E_FORMAT_NEWER, and those of
    `load_settings`.
    """
    if (folder / IMPORTING).exists():
        raise Refusal(reasons.IMPORT_UNFINISHED, private=str(folder))
    # In this order: an export makes the second mark before it removes the first one.
    for mark, reason in ((EXPORTING, reasons.EXPORT_UNFINISHED), (MOVED, reasons.SERVER_MOVED)):
        if (folder / mark).exists():
            raise Refusal(reason, private=str(folder / mark))
    if not (folder / "server.toml").is_file():
        raise Refusal(reasons.NO_SERVER, private=str(folder))
    check_folder(folder, "server")
    return load_settings(folder / "server.toml", ServerConfig)


@contextmanager
def control(folder: Path) -> Iterator["ControlHttpClient"]:
    """Open a client of the Control API of the server in `folder`.

    Raises Refusal on opening and within the block: those of `read_server_config`, E_CERTIFICATE_FILE,
    E_SERVER_UNREACHABLE, E_RUN_UNKNOWN, and E_CONTROL_FAILED for anything else that the server refuses.
    """
    import httpx

    from federation.flower.control import ControlHttpClient, RuntimeVersionHttpInterceptor

    config = read_server_config(folder)
    os.environ["no_proxy"] = without_proxy()  # Flower's client has no other way to bypass the proxy
    client = ControlHttpClient.from_server_address(
        server_address=f"{LOOPBACK}:{config.control_port}",
        insecure=bool(config.simulated_sites),
        root_certificates=None if config.simulated_sites else _loopback_pem(folder),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedthorax")],
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        raise _refusal(error) from error
    except httpx.TransportError as error:
        private = f"DIR is {folder}; {error}"
        raise Refusal(reasons.SERVER_UNREACHABLE, private=private, port=config.control_port) from error
    finally:
        client.close()


def _loopback_pem(folder: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    from federation.system.certificate_files import read_certificate

    return read_certificate(loopback_certificate(folder)).public_bytes(Encoding.PEM)


def _refusal(error: "httpx.HTTPStatusError") -> Refusal:
    """Convert Flower's answer to its client; details stay in Flower's own log."""
    from federation.flower.control import ApiErrorCode, FlowerError

    answer = FlowerError.from_json(error.response.text)
    if answer and answer.code == ApiErrorCode.RUN_ID_NOT_FOUND:
        return Refusal(reasons.RUN_UNKNOWN)
    return Refusal(
        reasons.CONTROL_FAILED,
        private=str(error),
        answer=answer.message if answer else f"HTTP {error.response.status_code}",
    )
