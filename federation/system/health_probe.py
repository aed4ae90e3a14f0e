"""Ask a service of this machine for its health, as the health check of a container.

    python -I -m federation.system.health_probe URL

URL is such as http://127.0.0.1:9464/health/ready (docs/operations.md, "Monitoring"). Exit code 0 for the answer 200,
1 for any other answer or none. Only loopback is asked, so the certificate of a page with TLS is not verified.

Only the standard library is imported: this program starts every half minute.
"""

import http.client
import ssl
import sys
from urllib.parse import urlsplit

SECONDS = 8.0
_LOOPBACK = ("127.0.0.1", "localhost")


def is_healthy(url: str, seconds: float = SECONDS) -> bool:
    """Return whether a URL of this machine answers with 200. Raises ValueError for another host or scheme."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or parts.scheme not in ("http", "https"):
        raise ValueError(f"not an address of this machine: {url}")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=seconds, context=context)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_healthy(sys.argv[1]))
