"""Clients that leave, and clients that dawdle: neither holds on to anything.

A request ends the moment its client is gone. One that takes too long to send its next piece, or to
take ours, is treated as gone.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

GONE: Message = {"type": "http.disconnect"}


class Dawdled(Exception):
    """A client took no more of a response."""


class Attended:
    """Runs an application as long as the client of the request is there.

    `patience` is how many seconds a client may take for one piece, in either direction.
    """

    def __init__(self, app: ASGIApp, patience: float) -> None:
        self.app, self.patience = app, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        line = _Line(receive, send, self.patience)
        if bodiless(scope):
            line.held = await line.receive()
        work = asyncio.ensure_future(self.app(scope, line.receive, line.send))
        watch = asyncio.ensure_future(line.watch())
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            done = await asyncio.gather(work, watch, return_exceptions=True)
        problem = done[0]
        if problem is scope.get("state", {}).get("told") or isinstance(
            problem, asyncio.CancelledError | Dawdled
        ):
            return
        if isinstance(problem, BaseException):
            raise problem


class _Line:
    """What passes between one client and the application."""

    def __init__(self, receive: Receive, send: Send, patience: float) -> None:
        self._receive, self._send, self.patience = receive, send, patience
        self.held: Message | None = None  # read already, on the application's behalf
        self.complete = asyncio.Event()  # the request's body has been read
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        if self.held is not None:
            message, self.held = self.held, None
            return message
        if self.complete.is_set():
            await self.gone.wait()
            return GONE
        try:
            message = await asyncio.wait_for(self._receive(), self.patience)
        except TimeoutError:
            message = GONE
        if message["type"] == "http.disconnect":
            self.complete.set()
            self.gone.set()
        elif not message.get("more_body"):
            self.complete.set()
        return message

    async def send(self, message: Message) -> None:
        try:
            await asyncio.wait_for(self._send(message), self.patience)
        except TimeoutError as slow:
            raise Dawdled from slow

    async def watch(self) -> None:
        """Returns when the client is gone; to be left alone while the body is read."""
        await self.complete.wait()
        while not self.gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.gone.set()


def bodiless(scope: Scope) -> bool:
    """Whether a request announces no body, so that the application may never read one."""
    names = {name for name, _ in scope["headers"]}
    return not names & {b"content-length", b"transfer-encoding"}


def protocol(patience: float) -> type[HttpToolsProtocol]:
    """uvicorn's, which hangs up on a client that does not complete a request's head in time."""

    class Patient(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(patience, self._hang_up)

        def on_headers_complete(self) -> None:
            self._head.cancel()
            super().on_headers_complete()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head.cancel()
            self._head = self.loop.call_later(patience, self._hang_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.cancel()
            super().connection_lost(exc)

        def _hang_up(self) -> None:
            self.transport.close()

    return Patient
