"""How commands on the server's machine talk to the running server: its settings, Flower's Control API.

The Control API asks nobody who they are (Flower keeps that for its enterprise edition): whoever reaches it
can enrol nodes and start code. So we use it on the server's own machine alone.
"""

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation import reasons
from federation.processes import LOOPBACK, without_proxy
from models.refusal import Refusal

if TYPE_CHECKING:
    import httpx
    from flwr.supercore.control import ControlHttpClient


class ServerConfig(BaseModel):
    """`server.toml`: where the study's server listens. `simulated_sites` is only set for a simulation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = LOOPBACK
    port: int = Field(ge=1, le=65535)
    simulated_sites: int = Field(default=0, ge=0)

    @property
    def reached_at(self) -> str:
        """The host by which this machine itself reaches the server."""
        return LOOPBACK if self.host == "0.0.0.0" else self.host  # noqa: S104


def ca_certificate(folder: Path) -> Path:
    """The certificate that every node of this server pins."""
    return folder / "certificates" / "ca.crt"


def read_server_config(folder: Path) -> ServerConfig:
    """The settings of the server in `folder`. Raises Refusal: E_NO_SERVER, E_SERVER_CONFIG."""
    path = folder / "server.toml"
    try:
        return ServerConfig.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise Refusal(reasons.NO_SERVER, private=str(folder)) from None
    except tomllib.TOMLDecodeError as error:
        raise Refusal(reasons.SERVER_CONFIG, private=str(path), key="syntax", problem=str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise Refusal(reasons.SERVER_CONFIG, private=str(path), key=key, problem=first["msg"]) from None


@contextmanager
def control(folder: Path) -> Iterator["ControlHttpClient"]:
    """A client of the Control API of the server in `folder`.

    Raises Refusal, then and within the block: E_NO_SERVER, E_SERVER_CONFIG, E_SERVER_UNREACHABLE,
    E_RUN_UNKNOWN, and E_CONTROL_FAILED for whatever else the server refuses.
    """
    import httpx
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    config = read_server_config(folder)
    os.environ["no_proxy"] = without_proxy()  # Flower's client offers no other way to say so
    client = ControlHttpClient.from_server_address(
        server_address=f"{config.reached_at}:{config.port}",
        insecure=bool(config.simulated_sites),
        root_certificates=None if config.simulated_sites else ca_certificate(folder).read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedthorax")],
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        raise _refusal(error) from error
    except httpx.TransportError as error:
        raise Refusal(reasons.SERVER_UNREACHABLE, private=str(error), port=config.port) from error
    finally:
        client.close()


def _refusal(error: "httpx.HTTPStatusError") -> Refusal:
    """What Flower answers its client; what it writes to its own log stays there."""
    from flwr.supercore.error import ApiErrorCode, FlowerError

    answer = FlowerError.from_json(error.response.text)
    if answer and answer.code == ApiErrorCode.RUN_ID_NOT_FOUND:
        return Refusal(reasons.RUN_UNKNOWN)
    return Refusal(
        reasons.CONTROL_FAILED,
        private=str(error),
        answer=answer.message if answer else f"HTTP {error.response.status_code}",
    )
