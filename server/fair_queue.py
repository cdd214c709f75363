"""Who waits for whom: few at work, a bounded queue, keys served in turn."""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

T = TypeVar("T")
Ticket = asyncio.Future[None]


class Full(Exception):
    """There is no room to wait; `after` says in how many seconds to come again."""

    def __init__(self, after: int) -> None:
        super().__init__(f"come again in {after} s")
        self.after = after


class Turns:
    """`slots` at work, `room` waiting. A free slot goes to the keys in turn, however many requests
    each has waiting; where the queue is full, a key that holds less of it than another takes its
    place."""

    def __init__(self, slots: int, room: int) -> None:
        self.slots, self.room = slots, room
        self.working = 0
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._seconds = 0.1  # what one turn takes, a running mean

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """A slot for as long as the block lasts. Raises `Full`."""
        await self._take(who)
        begun = monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (monotonic() - begun - self._seconds)
            self.working -= 1
            self._next()

    async def _take(self, who: str) -> None:
        if self.working < self.slots and not self._lines:
            self.working += 1
            return
        if self.waiting >= self.room:
            self._displace(who)
        ticket: Ticket = asyncio.get_running_loop().create_future()
        self._lines.setdefault(who, deque()).append(ticket)
        try:
            await ticket
        except BaseException:
            if ticket.done() and not ticket.cancelled() and not ticket.exception():
                self.working -= 1  # was given the slot at the very moment that it left
                self._next()
            else:
                self._forget(who, ticket)
            raise

    def _displace(self, who: str) -> None:
        """Make room for `who` at the cost of the key with most in the queue, or raise `Full`."""
        greedy = max(self._lines, key=lambda key: len(self._lines[key]))
        if len(self._lines[greedy]) <= len(self._lines.get(who, ())) + 1:
            raise Full(self._after())
        ticket = self._lines[greedy].pop()
        if not ticket.done():  # a client that is just leaving has cancelled its own
            ticket.set_exception(Full(self._after()))

    def _next(self) -> None:
        while self.working < self.slots and self._lines:
            who, line = next(iter(self._lines.items()))
            ticket = line.popleft()
            self._lines.move_to_end(who)
            if not line:
                del self._lines[who]
            if not ticket.done():
                self.working += 1
                ticket.set_result(None)

    def _forget(self, who: str, ticket: Ticket) -> None:
        line = self._lines.get(who)
        if line and ticket in line:
            line.remove(ticket)
        if line is not None and not line:
            del self._lines[who]

    def _after(self) -> int:
        return max(1, math.ceil(self._seconds * (self.waiting + self.working) / self.slots))


_UNBOUNDED = anyio.CapacityLimiter(math.inf)


async def in_thread(work: Callable[[], T]) -> T:
    """`work`, for whoever has a turn: not in one of the threads that all other routes share, so that
    a crowd of slow requests of these keeps no question waiting."""
    return await run_sync(work, limiter=_UNBOUNDED)
