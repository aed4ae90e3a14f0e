"""Tells which network addresses only this machine can reach."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a port on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
