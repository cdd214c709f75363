"""The fair queue: never more running than slots, keys in rotation, no slot is lost."""

import asyncio
import random

import pytest

from server.fair_queue import FairQueue, QueueFull


def test_at_most_as_many_requests_run_as_there_are_slots() -> None:
    async def run() -> int:
        queue, most = FairQueue(3, 1000), 0

        async def one(who: str) -> None:
            nonlocal most
            async with queue.slot(who):
                most = max(most, queue.running)
                await asyncio.sleep(0)

        await asyncio.gather(*(one(str(i % 7)) for i in range(200)))
        assert queue.running == queue.waiting == 0
        return most

    assert asyncio.run(run()) == 3


def test_keys_are_served_in_turn_however_many_requests_one_has() -> None:
    async def run() -> list[str]:
        queue, served = FairQueue(1, 100), []

        async def one(who: str) -> None:
            async with queue.slot(who):
                served.append(who)

        async with queue.slot("first"):
            waiting = [asyncio.ensure_future(one(who)) for who in ["greedy"] * 20 + ["a", "b"]]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        return served

    assert set(asyncio.run(run())[:3]) == {"greedy", "a", "b"}


def test_a_full_queue_rejects_the_key_with_the_most_requests() -> None:
    async def run() -> tuple[list[str], list[str]]:
        queue, served, refused = FairQueue(1, 4), [], []

        async def one(who: str) -> None:
            try:
                async with queue.slot(who):
                    served.append(who)
            except QueueFull as full:
                refused.append(who if full.seconds >= 1 else "told to come at once")

        async with queue.slot("first"):
            waiting = [asyncio.ensure_future(one(who)) for who in ["greedy"] * 6 + ["modest"]]
            await asyncio.sleep(0)
            assert queue.waiting == 4
        await asyncio.gather(*waiting)
        return served, refused

    served, refused = asyncio.run(run())
    assert "modest" in served
    assert refused == ["greedy"] * 3


def test_leaving_the_queue_or_the_work_frees_the_slot() -> None:
    async def run(seed: int) -> None:
        dice, queue = random.Random(seed), FairQueue(2, 50)

        async def one(who: str) -> None:
            async with queue.slot(who):
                await asyncio.sleep(dice.random() / 1000)

        tasks = [asyncio.ensure_future(one(str(i % 5))) for i in range(40)]
        for _ in range(30):
            await asyncio.sleep(dice.random() / 2000)
            dice.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.running == queue.waiting == 0
        async with queue.slot("after"):
            assert queue.running == 1

    for seed in range(20):
        asyncio.run(run(seed))


def test_work_that_fails_frees_its_slot() -> None:
    async def run() -> None:
        queue = FairQueue(1, 1)
        with pytest.raises(ZeroDivisionError):
            async with queue.slot("a"):
                _ = 1 / 0
        assert queue.running == 0

    asyncio.run(run())


def test_a_full_queue_displaces_a_request_that_is_just_leaving() -> None:
    async def run() -> list[str]:
        queue, served = FairQueue(1, 2), []

        async def one(who: str) -> None:
            async with queue.slot(who):
                served.append(who)

        async with queue.slot("first"):
            waiting = [asyncio.ensure_future(one("greedy")) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[1].cancel()  # its ticket is cancelled, and it has not run since
            modest = asyncio.ensure_future(one("modest"))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting, modest, return_exceptions=True)
        assert queue.running == queue.waiting == 0
        return served

    assert asyncio.run(run()) == ["greedy", "modest"]
