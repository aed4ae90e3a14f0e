"""How this machine reaches the study's server: through which proxy, and with which difference between the clocks.

The doctor, enrolment and the running gateway all use this module, so that a check and the node cannot disagree.
"""

from urllib.request import getproxies, proxy_bypass

from pipeline.site.folder import Site

# The server refuses a request that was signed longer ago, or further ahead of its own time. Flower's limits
# (TIMESTAMP_TOLERANCE) without its tolerance: a request that passes the study's ingress also passes in Flower.
MAX_BEHIND_SECONDS, MAX_AHEAD_SECONDS = 300.0, 5.0

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def server_proxy(site: Site, address: str) -> str:
    """Return the URL of the HTTP proxy for the server at `address` (host:port); '' for a direct connection.

    It is `proxy` in [server] of site.toml or, if that is empty, the environment's `HTTPS_PROXY`. A host that `NO_PROXY`
    names, and this machine itself, are reached directly in both cases. The variable may contain a user and a password.
    """
    host = address.rpartition(":")[0].strip("[]")
    if host in _LOOPBACK or proxy_bypass(host):
        return ""
    proxy = site.settings.server.proxy or getproxies().get("https", "")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
