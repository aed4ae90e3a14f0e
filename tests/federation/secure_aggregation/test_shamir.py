"""Shares rebuild a secret from the threshold on, and reveal nothing below it."""

import itertools
import secrets
from contextlib import suppress

import pytest

from federation.secure_aggregation.shamir import PRIME, SHARE_BYTES, combine, split


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (3, 3), (5, 4), (7, 5)])
def test_every_subset_of_the_threshold_rebuilds_the_secret(count: int, threshold: int) -> None:
    secret = secrets.token_bytes(32)
    shares = split(secret, range(1, count + 1), threshold)
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    for points in itertools.combinations(shares, threshold):
        assert combine({point: shares[point] for point in points}) == secret
    assert combine(shares) == secret


def test_extreme_secrets() -> None:
    for secret in (bytes(32), b"\xff" * 32):
        shares = split(secret, [3, 1, 100], 2)
        assert combine({1: shares[1], 100: shares[100]}) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """With one share less, there is a share that completes it to any secret: so nothing is known about it."""
    shares = split(secrets.token_bytes(32), [1, 2, 3], 3)
    for wanted in (0, 1, 2**255):
        # Lagrange at 0 over the points 1, 2, 3 has the coefficients 3, -3, 1.
        known = 3 * int.from_bytes(shares[1], "big") - 3 * int.from_bytes(shares[2], "big")
        third = ((wanted - known) % PRIME).to_bytes(SHARE_BYTES, "big")
        assert combine({1: shares[1], 2: shares[2], 3: third}) == wanted.to_bytes(32, "big")


def test_wrong_or_foreign_shares_give_another_secret_or_none() -> None:
    secret = secrets.token_bytes(32)
    shares = split(secret, [1, 2, 3], 2)
    with suppress(ValueError):
        assert combine({1: shares[1], 2: shares[3]}) != secret
    with pytest.raises(ValueError, match="field"):
        combine({1: shares[1], 2: b"\xff" * SHARE_BYTES})
    with pytest.raises(ValueError, match="field"):
        combine({1: shares[1], 2: bytes(32)})


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [
        (bytes(31), [1, 2], 2),
        (bytes(32), [1, 2], 3),
        (bytes(32), [0, 1], 2),
        (bytes(32), [1, 1], 2),
        (bytes(32), [1], 0),
    ],
)
def test_impossible_requests_are_refused(secret: bytes, points: list[int], threshold: int) -> None:
    with pytest.raises(ValueError, match=r"points|secret"):
        split(secret, points, threshold)
