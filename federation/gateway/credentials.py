"""The node's signature: the node proves its identity to the gateway with it, and the gateway to the server."""

import binascii
import math
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime

from federation.enrolment.certificates import load_node_key
from federation.flower.signatures import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    now,
    package_name,
    package_version,
    public_key_to_bytes,
    sign_message,
    verify_signature,
)
from pipeline.site.folder import Site

_SIGN_SECONDS = 60.0  # creating a signature takes about as long as the rest of a small request


class NodeKey:
    """The node's key pair: verifies and creates signed headers (flwr.supernode.node_auth_http_interceptor)."""

    def __init__(self, site: Site) -> None:
        """Raises Refusal if the key is missing or invalid."""
        self._private = load_node_key(site.node_key)
        self.public_pem = public_key_to_bytes(self._private.public_key())
        # Same content as flwr's RuntimeVersionMetadata. Importing its module would load FastAPI (5 MB).
        self._version = {
            FLWR_PACKAGE_NAME_METADATA_KEY: package_name,
            FLWR_PACKAGE_VERSION_METADATA_KEY: package_version,
            FLWR_COMPONENT_NAME_METADATA_KEY: "SuperNode",
        }
        self._headers: dict[str, str] = {}
        self._signed_s = -math.inf

    def signed(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request's headers carry a recent signature of this key."""
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            timestamp = headers[TIMESTAMP_HEADER]
            signed = timestamp.encode()
            age_s = (now() - datetime.fromisoformat(timestamp)).total_seconds()
        except (KeyError, TypeError, ValueError, binascii.Error):
            return False
        recent = -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        ours = key == self.public_pem
        return recent and ours and verify_signature(self._private.public_key(), signed, signature)

    def headers(self) -> dict[str, str]:
        """Return signed headers that identify the node to the server: valid for five minutes, renewed every minute."""
        if time.monotonic() > self._signed_s + _SIGN_SECONDS:
            timestamp, self._signed_s = now().isoformat(), time.monotonic()
            self._headers = {
                **self._version,
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_pem).decode(),
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self._private, timestamp.encode())).decode(),
            }
        return dict(self._headers)
