"""A bounded queue of requests that serves the keys in rotation."""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from ingest.errors import UserError

T = TypeVar("T")
_UNLIMITED = anyio.CapacityLimiter(math.inf)


class QueueFull(UserError):
    """The queue has no room; the client may try again in `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__("too many questions are waiting; try again in {seconds} s", seconds=seconds)
        self.seconds = seconds


class FairQueue:
    """At most `slots` requests run and at most `capacity` wait.

    A free slot goes to the keys in rotation, however many requests each has waiting. If the queue
    is full, a request displaces one of the key that has the most waiting, if that has more than
    its own key.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.running = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._seconds = 0.1  # running mean of a request's duration

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[None]:
        """Hold a slot during the block. Raises `QueueFull`."""
        await self._acquire(key)
        start = monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (monotonic() - start - self._seconds)
            self._release()

    async def _acquire(self, key: str) -> None:
        if self.running < self.slots and not self._waiting:
            self.running += 1
            return
        if self.waiting >= self.capacity:
            self._displace(key)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self._release()  # it got the slot at the moment when it was cancelled
            elif line := self._waiting.get(key):
                if waiter in line:
                    line.remove(waiter)
                if not line:
                    del self._waiting[key]
            raise

    def _displace(self, key: str) -> None:
        """Remove the newest request of the key with the most waiting, or raise `QueueFull`."""
        seconds = self._seconds * (self.waiting + self.running) / self.slots
        full = QueueFull(max(1, math.ceil(seconds)))
        longest = max(self._waiting, key=lambda key: len(self._waiting[key]))
        if len(self._waiting[longest]) <= len(self._waiting.get(key, ())) + 1:
            raise full
        waiter = self._waiting[longest].pop()
        if not waiter.done():  # otherwise its client has just left
            waiter.set_exception(full)

    def _release(self) -> None:
        self.running -= 1
        while self.running < self.slots and self._waiting:
            key, line = next(iter(self._waiting.items()))
            waiter = line.popleft()
            self._waiting.move_to_end(key)
            if not line:
                del self._waiting[key]
            if not waiter.done():
                self.running += 1
                waiter.set_result(None)


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, for a caller that holds a slot.

    The threads that all other routes share may be busy with slow requests.
    """
    return await run_sync(work, limiter=_UNLIMITED)
