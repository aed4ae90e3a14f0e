"""How this machine reaches the study's server: through which proxy, and with which difference between the clocks.

The doctor, enrolment and the running gateway all use this module, so that a check and the node cannot disagree.
"""

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.site.reasons import SERVER_PROXY

# The server refuses a request that was signed longer ago, or further ahead of its own time. Flower's limits
# (TIMESTAMP_TOLERANCE) without its tolerance: a request that passes the study's ingress also passes in Flower.
MAX_BEHIND_SECONDS, MAX_AHEAD_SECONDS = 300.0, 5.0

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def server_proxy(site: Site, address: str) -> str:
    """Return the URL of the HTTP proxy for the server at `address` (host:port); '' for a direct connection.

    It is `proxy` in [server] of site.toml or, if that is empty, the environment's `HTTPS_PROXY`. A host that `NO_PROXY`
    names, and this machine itself, are reached directly in both cases. The variable may contain a user and a password.

    Raises Refusal E_SERVER_PROXY if the variable names another kind of proxy, or no address.
    """
    host = address.rpartition(":")[0].strip("[]")
    if host in _LOOPBACK or proxy_bypass(host):
        return ""
    proxy = site.settings.server.proxy or getproxies().get("https", "")
    if not proxy:
        return ""
    url = proxy if "://" in proxy else f"http://{proxy}"
    if not _is_http(url):
        raise Refusal(SERVER_PROXY, cause="HTTPS_PROXY is not the address of an HTTP proxy")  # it may hold a password
    return url


def refused_connect(status: int) -> Refusal | None:
    """Return the refusal for a proxy that answers CONNECT with this HTTP status; None if the server may be the cause.

    With 400 to 499 the proxy itself refuses. With another status it could not connect to the server.
    """
    return Refusal(SERVER_PROXY, cause=f"it refuses with HTTP {status}") if status in range(400, 500) else None


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # A character of a password that is not written as in a URL would end the host, and the rest be a path.
        has_more = parts.path not in ("", "/") or parts.query or parts.fragment
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and not has_more
    except ValueError:  # a port that is no number, or too large
        return False
