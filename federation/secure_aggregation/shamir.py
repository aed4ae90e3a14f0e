"""Shamir's secret sharing over a prime field: a secret in shares, of which a threshold rebuilds it (Shamir 1979).

Fewer shares than the threshold reveal nothing: for every secret there is one polynomial through them.
"""

import secrets
from collections.abc import Mapping, Sequence

# The smallest prime above 2^256, so that every 32-byte key is an element.
PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, points: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Return a share of a 32-byte secret for each point, which are distinct and not 0 in the field.

    Raises ValueError for a secret of another length, invalid points, or a threshold that the points cannot reach.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise ValueError("a secret of 32 bytes and a threshold of at most the number of points are needed")
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise ValueError("points must be distinct and between 1 and the prime")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {point: _value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def _value(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret from shares by point, by Lagrange's interpolation at 0; give as many as the threshold.

    Wrong shares give a wrong secret. Raises ValueError if a share is no field element, or the result no secret.
    """
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    if any(len(share) != SHARE_BYTES for share in shares.values()) or any(value >= PRIME for value in values.values()):
        raise ValueError("a share is not an element of the field")
    secret = 0
    for point, value in values.items():
        above, below = 1, 1
        for other in values:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")
