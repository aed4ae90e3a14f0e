"""How often somebody may ask, and how many scans may come in."""

import asyncio

import pytest

from models.refusal import Refusal
from pipeline.clinic.web import limits
from pipeline.clinic.web.limits import Buckets, Room


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_burst_is_let_in_and_then_so_many_a_minute() -> None:
    clock = Clock()
    buckets = Buckets(per_minute=6, burst=3, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 10]
    clock.seconds = 9
    assert buckets.take("a") == 1
    clock.seconds = 10
    assert [buckets.take("a") for _ in range(2)] == [0, 10]
    clock.seconds = 1000
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 10]


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets(per_minute=1, burst=1, clock=Clock())
    assert buckets.take("a") == 0
    assert buckets.take("b") == 0
    assert buckets.take("a") == 60


def test_many_addresses_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MOST_KEYS", 10)
    buckets = Buckets(per_minute=1, burst=2, clock=Clock())
    for number in range(1000):
        buckets.take(str(number))
    assert len(buckets._levels) <= 10


def test_scans_that_come_in_count_as_those_that_wait() -> None:
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
