"""A server, from its options to its end."""

import logging
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import closing
from types import FrameType

import uvicorn

from ingest.errors import UserError
from server.app import application, guarded
from server.auth import Keys
from server.clients import protocol
from server.crew import Crew
from server.log import log_json
from server.models import Models, loader
from server.options import ServerOptions
from server.state import State
from server.telemetry import Spans

BACKLOG = 512
GRACE = 20  # seconds that answers under way get at the end


def serve(
    options: ServerOptions,
    *,
    spans: Spans,
    told: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Serve until a signal ends it; `told` gets the address once it listens. Answers under way are
    finished, jobs under way wait for the next start."""
    log_json(logging.INFO)
    signal.signal(signal.SIGTERM, _end)  # uvicorn raises it once more when it is done
    crew = Crew(options)
    models = Models(loader(options.cache, note))
    with closing(State.made(options, models, spans=spans, worker_alive=crew.alive)) as state:
        check_door(options, state.keys)
        with closing(listen(options)) as listening, crew:
            tempfile.tempdir = str(state.member.folder)  # uploads wait where there is room for them
            host, port = listening.getsockname()[:2]
            told(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
            uvicorn.Server(configuration(state)).run(sockets=[listening])


def configuration(state: State) -> uvicorn.Config:
    """How uvicorn is to run the application. It believes no header about who the client is."""
    return uvicorn.Config(
        guarded(application(state), state),
        http=protocol(state.options.patience),
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        ws="none",
    )


def listen(options: ServerOptions) -> socket.socket:
    """A socket at the options' address; `UserError` where that is taken or not this machine's."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        # Named, so that asyncio knows TCP from others and sends small packets at once (TCP_NODELAY).
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(BACKLOG)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"can't listen at {options.host} port {options.port}: {why}; choose another with --port",
            zh=f"无法监听 {options.host} 端口 {options.port}：{why}；请用 --port 换一个",
        ) from error
    return listening


def check_door(options: ServerOptions, keys: Keys) -> None:
    """Raises `UserError` where others could come in without a key."""
    if not options.on_loopback and not keys.usable:
        raise UserError(
            f"{options.host} can be reached from other machines and there is no key; make one "
            "first: rag keys create NAME --scope read",
            zh=f"{options.host} 可被其他机器访问，而现在没有密钥；请先创建：rag keys create 名称 --scope read",
        )


def _end(number: int, frame: FrameType | None) -> None:
    """As an end that was asked for: whatever is open is closed on the way out."""
    raise SystemExit(0)
