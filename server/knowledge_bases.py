"""The knowledge bases of a server: opened once, shared by all requests, kept up to date."""

import re
import secrets
import shutil
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from weakref import finalize

from ingest.embed import Embedder
from ingest.errors import UserError
from ingest.i18n import Translator
from ingest.store import MilvusAddress, Store, drop_milvus
from ingest.store.atomic import sync
from ingest.store.sqlite import failures_named
from rag.config import DATABASE, SETTINGS, Config, is_knowledge_base, read_config
from rag.load import Encoders, encoder_of, encoders, open_writer, pipeline_of, score_norm_of
from rag.pipeline import Pipeline
from server import schemas
from server.auth import Principal
from server.errors import Conflict, NotFound, hide_locations, unknown_base
from server.models import CachedEmbedder, Models
from server.options import CORES, ServerOptions, check_choice, write_settings
from server.replica import Replica
from server.uploads import MAX_NAME_BYTES

MAX_OPEN = 32  # knowledge bases that are open at one time


def has_knowledge_base(folder: Path) -> bool:
    """Whether the folder holds a knowledge base, or settings that name the server of one, and
    neither is a symbolic link."""
    primary, settings = folder / DATABASE, folder / SETTINGS
    if folder.is_symlink() or primary.is_symlink():
        return False
    if primary.is_file():
        return True
    try:
        return not settings.is_symlink() and is_knowledge_base(folder)
    except UserError:  # its settings are wrong; opening it reports why
        return True


def identity_of(folder: Path) -> Hashable:
    """Differs between a knowledge base and another that replaces it while it is open; None if there
    is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return (folder / DATABASE).stat().st_ino
    with suppress(FileNotFoundError, NotADirectoryError):
        stamp = folder.stat().st_ino, stamp_of(folder / SETTINGS)
        return stamp if has_knowledge_base(folder) else None
    return None


def stamp_of(file: Path) -> Hashable:
    """Changes whenever a settings file is written; None if there is none."""
    with suppress(FileNotFoundError):
        status = file.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def drop_remote(folder: Path) -> None:
    """Delete what a Milvus server stores for the knowledge base in the folder."""
    location = read_config(folder).location
    if isinstance(location, MilvusAddress):
        drop_milvus(location)


def check_name(name: str) -> str:
    """`name`, if it is a valid name of a knowledge base and of its folder. Raises `UserError`."""
    if not _is_valid(name) or unicodedata.normalize("NFKC", name) != name:
        raise UserError(
            "{name!r} is not a valid name of a knowledge base; use up to 64 letters, digits, _ and "
            "- ({max_size} bytes)",
            name=name[:80], max_size=MAX_NAME_BYTES,
        )  # fmt: skip
    return name


def _is_valid(name: str) -> bool:
    return bool(re.fullmatch(schemas.NAME_PATTERN, name)) and len(name.encode()) <= MAX_NAME_BYTES


def folder_of(data: Path, name: str) -> Path:
    """The folder of a knowledge base in the data folder. Raises `NotFound`."""
    if not _is_valid(name) or not has_knowledge_base(data / name):
        raise unknown_base(name)
    return data / name


@dataclass
class OpenKnowledgeBase:
    """`current` is the pipeline, and the stamp of the state that it was made from. The store is closed when
    nobody has a reference to this any more."""

    path: Path
    store: Store
    embedder: Embedder
    identity: Hashable
    current: tuple[Pipeline, Hashable] | None = None

    def __post_init__(self) -> None:
        finalize(self, self.store.close)


class KnowledgeBases:
    """Knowledge bases by name, below `options.data`. Other replicas may create, change and delete
    them too. Those that are being created or deleted are in the folder of this `replica`."""

    def __init__(
        self, options: ServerOptions, models: Models, replica: Replica,
        open_encoder: Encoders | None = None,
    ) -> None:  # fmt: skip
        self.options, self.models, self.replica = options, models, replica
        self._lock = threading.RLock()
        self._open: OrderedDict[str, OpenKnowledgeBase] = OrderedDict()
        self._open_locks: dict[str, threading.Lock] = {}
        # More threads do not embed a short text faster; other questions use the other cores.
        load = open_encoder or encoders(options.cache, threads=min(2, CORES))
        self.encoder = cache(lambda name, backend: CachedEmbedder(load(name, backend)))

    def names(self) -> list[str]:
        folders = sorted(self.options.data.glob("*/"))
        return [each.name for each in folders if _is_valid(each.name) and has_knowledge_base(each)]

    def path(self, name: str) -> Path:
        return folder_of(self.options.data, name)

    @contextmanager
    def open(self, name: str) -> Iterator[Pipeline]:
        """The pipeline for the knowledge base's present state and settings. Raises `NotFound`, also
        if it is deleted during the block."""
        path = self.path(name)
        identity = identity_of(path)
        try:
            with self._hide_locations():
                base = self._acquire(name, path, identity)
                yield self._pipeline(base)
        except (OSError, UserError) as problem:
            if identity is not None and identity_of(path) == identity:
                raise
            raise unknown_base(name) from problem

    @contextmanager
    def _hide_locations(self) -> Iterator[None]:
        try:
            yield
        except UserError as problem:
            hide_locations(problem, self.options.data)
            raise

    def _acquire(self, name: str, path: Path, identity: Hashable) -> OpenKnowledgeBase:
        """The open knowledge base."""
        with self._lock:
            open_lock = self._open_locks.setdefault(name, threading.Lock())
        with open_lock:  # a slow Milvus server must not block other knowledge bases
            with self._lock:
                base = self._open.get(name)
                if base and base.identity == identity:
                    self._open.move_to_end(name)
                    return base
                self._open.pop(name, None)  # it was deleted, and another one has its name
            config = read_config(path)
            store = config.open_store()
            try:
                embedder = encoder_of(store, config.embed, self.encoder)
            except BaseException:
                store.close()
                raise
            base = OpenKnowledgeBase(path, store, embedder, identity)
            with self._lock:
                self._open[name] = base
                while len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
        return base

    def _pipeline(self, base: OpenKnowledgeBase) -> Pipeline:
        stamp = base.store.sequence, stamp_of(base.path / SETTINGS)
        if base.current is None or base.current[1] != stamp:
            config = self.config(base.path)
            norm = score_norm_of(base.store, base.embedder, stale=True)
            generator = self.models.generator(config.generate)
            say = Translator("en")
            pipeline = pipeline_of(config, base.store, base.embedder, norm, say, generator)
            base.current = pipeline, stamp
        return base.current[0]

    def config(self, path: Path) -> Config:
        """The knowledge base's settings, with the server's language model if they name none."""
        config, default = read_config(path), self.options.generate
        if config.generate.model or default is None:
            return config
        generate = replace(config.generate, model=default.model, quant=default.quant)
        return replace(config, generate=generate)

    def describe_all(self, who: Principal, say: Translator) -> list[schemas.KnowledgeBaseResponse]:
        """All that the key may read. One that can't be opened is listed with its problem."""
        responses = []
        for name in self.names():
            if who.may("read", name):
                try:
                    responses.append(self.describe(name, who))
                except NotFound:
                    continue  # it has just been deleted
                except UserError as problem:
                    unusable = schemas.KnowledgeBaseResponse(
                        name=name, scopes=who.scopes(name), problem=say(problem.message)
                    )
                    responses.append(unusable)
        return responses

    def describe(self, name: str, who: Principal) -> schemas.KnowledgeBaseResponse:
        with self.open(name) as pipeline:
            info, config = pipeline.store.info(), pipeline.config
        return schemas.KnowledgeBaseResponse(
            name=name, documents=info.documents, chunks=info.chunks, bytes=info.bytes,
            created=info.created, sequence=info.sequence,
            embedder=str(info.identity.options["embedder"]),
            instruction=config.prompt.instruction,
            adapter=Path(config.generate.adapter).name,
            generator=pipeline.generator.name if pipeline.generator else "",
            scopes=who.scopes(name),
        )  # fmt: skip

    def create(self, request: schemas.CreateKnowledgeBaseRequest) -> None:
        """Create an empty knowledge base atomically. Raises `Conflict` if its name is taken."""
        name = check_name(request.name)
        embedder = request.embedder or self.options.embedders[0]
        check_choice("embedder", embedder, self.options.embedders)
        target, work = self.options.data / name, self.replica.folder / secrets.token_hex(8)
        with self._hide_locations(), failures_named(target):
            work.mkdir()
            if self.options.store:
                address = f"{self.options.store}/kb_{secrets.token_hex(8)}"
                (work / SETTINGS).write_text(f'[store]\nurl = "{address}"\n', "utf-8")
            try:
                config, cache = self.config(work), self.options.cache
                open_writer(config, embedder=embedder, cache=cache, open_encoder=self.encoder).store.close()
                write_settings(work, request, self.options, config.generate)
                with self.replica.lock("creating a knowledge base"):
                    if target.exists() or target.is_symlink():
                        raise Conflict("knowledge base {name} exists already; choose another name", name=name)
                    work.rename(target)
                sync(self.options.data)
            except BaseException:
                if work.is_dir():
                    drop_remote(work)
                raise
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def change(self, name: str, request: schemas.ChangeKnowledgeBaseRequest) -> None:
        path = self.path(name)
        with self._hide_locations(), self.replica.lock("changing settings"):
            write_settings(path, request, self.options, self.config(path).generate)

    def delete(self, name: str) -> None:
        """Delete a knowledge base and everything in its folder."""
        path, work = self.path(name), self.replica.folder / secrets.token_hex(8)
        with self._hide_locations(), failures_named(path):
            drop_remote(path)  # if the server dies now, the folder can be deleted again
            with self.replica.lock("deleting"):
                if not has_knowledge_base(path):
                    raise unknown_base(name)
                path.rename(work)
                sync(self.options.data)
        self._open.pop(name, None)
        shutil.rmtree(work, ignore_errors=True)

    def close(self) -> None:
        self._open.clear()
