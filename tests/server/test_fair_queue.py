"""Who waits for whom: never more at work than slots, keys in turn, nothing lost when one leaves."""

import asyncio
import random

import pytest

from server.fair_queue import Full, Turns


def test_no_more_work_at_one_time_than_there_are_slots() -> None:
    async def run() -> int:
        turns, most = Turns(3, 1000), 0

        async def one(who: str) -> None:
            nonlocal most
            async with turns.turn(who):
                most = max(most, turns.working)
                await asyncio.sleep(0)

        await asyncio.gather(*(one(str(i % 7)) for i in range(200)))
        assert turns.working == turns.waiting == 0
        return most

    assert asyncio.run(run()) == 3


def test_keys_are_served_in_turn_however_many_requests_one_has() -> None:
    async def run() -> list[str]:
        turns, served = Turns(1, 100), []

        async def one(who: str) -> None:
            async with turns.turn(who):
                served.append(who)

        async with turns.turn("first"):
            waiting = [asyncio.ensure_future(one(who)) for who in ["greedy"] * 20 + ["a", "b"]]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        return served

    assert set(asyncio.run(run())[:3]) == {"greedy", "a", "b"}


def test_a_full_queue_turns_the_greedy_away_not_the_modest() -> None:
    async def run() -> tuple[list[str], list[str]]:
        turns, served, refused = Turns(1, 4), [], []

        async def one(who: str) -> None:
            try:
                async with turns.turn(who):
                    served.append(who)
            except Full as full:
                refused.append(who if full.after >= 1 else "told to come at once")

        async with turns.turn("first"):
            waiting = [asyncio.ensure_future(one(who)) for who in ["greedy"] * 6 + ["modest"]]
            await asyncio.sleep(0)
            assert turns.waiting == 4
        await asyncio.gather(*waiting)
        return served, refused

    served, refused = asyncio.run(run())
    assert "modest" in served
    assert refused == ["greedy"] * 3


def test_whoever_leaves_the_queue_or_the_work_frees_the_place() -> None:
    async def run(seed: int) -> None:
        dice, turns = random.Random(seed), Turns(2, 50)

        async def one(who: str) -> None:
            async with turns.turn(who):
                await asyncio.sleep(dice.random() / 1000)

        tasks = [asyncio.ensure_future(one(str(i % 5))) for i in range(40)]
        for _ in range(30):
            await asyncio.sleep(dice.random() / 2000)
            dice.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert turns.working == turns.waiting == 0
        async with turns.turn("after"):
            assert turns.working == 1

    for seed in range(20):
        asyncio.run(run(seed))


def test_work_that_fails_frees_its_slot() -> None:
    async def run() -> None:
        turns = Turns(1, 1)
        with pytest.raises(ZeroDivisionError):
            async with turns.turn("a"):
                _ = 1 / 0
        assert turns.working == 0

    asyncio.run(run())


def test_a_full_queue_makes_room_at_the_cost_of_one_that_is_just_leaving() -> None:
    async def run() -> list[str]:
        turns, served = Turns(1, 2), []

        async def one(who: str) -> None:
            async with turns.turn(who):
                served.append(who)

        async with turns.turn("first"):
            waiting = [asyncio.ensure_future(one("greedy")) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[1].cancel()  # its ticket is cancelled, and it has not run since
            modest = asyncio.ensure_future(one("modest"))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting, modest, return_exceptions=True)
        assert turns.working == turns.waiting == 0
        return served

    assert asyncio.run(run()) == ["greedy", "modest"]
