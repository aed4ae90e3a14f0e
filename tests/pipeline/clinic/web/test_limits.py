"""Tests of the rate limit for requests and of the limit for incoming scans."""

import asyncio

from models.refusal import Refusal
from pipeline.clinic.web.limits import Buckets, Room


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_burst_is_allowed_and_then_the_rate_is_limited() -> None:
    clock = Clock()
    buckets = Buckets(per_minute=6, burst=3, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 10]
    clock.seconds = 9
    assert buckets.take("a") == 1
    clock.seconds = 10
    assert [buckets.take("a") for _ in range(2)] == [0, 10]
    clock.seconds = 1000
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 10]


def test_each_key_has_its_own_bucket() -> None:
    buckets = Buckets(per_minute=1, burst=1, clock=Clock())
    assert buckets.take("a") == 0
    assert buckets.take("b") == 0
    assert buckets.take("a") == 60


def test_number_of_remembered_addresses_is_limited() -> None:
    """An empty bucket that is removed starts full again."""
    buckets = Buckets(per_minute=1, burst=1, clock=Clock(), most_keys=10)
    addresses = [str(number) for number in range(1000)]
    for address in addresses:
        assert buckets.take(address) == 0
    remembered = [address for address in addresses if buckets.wait_seconds(address)]
    assert 0 < len(remembered) <= 10


def test_full_buckets_are_removed_first() -> None:
    clock = Clock()
    buckets = Buckets(per_minute=1, burst=1, clock=clock, most_keys=3)
    buckets.take("full again")
    clock.seconds = 60
    for address in ("a", "b", "c"):
        buckets.take(address)
    assert all(buckets.wait_seconds(address) for address in ("a", "b", "c"))


def test_uploads_in_progress_count_as_waiting_scans() -> None:
    waiting = 2
    room = Room(4, lambda: waiting)

    async def come() -> list[str]:
        told = []
        async with room.place(), room.place():
            try:
                async with room.place():
                    told.append("came")
            except Refusal as refusal:
                told.append(refusal.code)
        async with room.place():
            told.append("came")
        return told

    assert asyncio.run(come()) == ["E_QUEUE_FULL", "came"]
