"""The knowledge bases of a server: each opened once, read by many, renewed when it has changed."""

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
from typing import Any

from ingest.embed import Embedder
from ingest.errors import UserError
from ingest.i18n import Translator
from ingest.store import Address, Store, drop_milvus
from ingest.store.atomic import sync
from ingest.store.sqlite import failures_named
from rag.config import DATABASE, SETTINGS, Config, is_knowledge_base, read_config
from rag.load import Encoders, encoder_of, encoders, open_writer, pipeline_of, score_norm_of
from rag.pipeline import Pipeline
from rag.types import Sampling
from server import schemas
from server.auth import Principal
from server.errors import Taken, Unknown, below, no_base
from server.membership import Members
from server.models import Models, Remembered
from server.options import CORES, ServerOptions, check_choice, offered, write_choices

OPEN = 32  # knowledge bases that are held open
LONGEST = 240  # bytes of a name; file systems take 255


def whole(folder: Path) -> bool:
    """Whether a knowledge base lies in the folder, or its settings say on which server, and no link
    leads to one elsewhere."""
    truth, settings = folder / DATABASE, folder / SETTINGS
    if folder.is_symlink() or truth.is_symlink():
        return False
    if truth.is_file():
        return True
    try:
        return not settings.is_symlink() and is_knowledge_base(folder)
    except UserError:  # what is wrong with it is told when it is opened
        return True


def incarnation(folder: Path) -> Hashable:
    """Tells a knowledge base, as long as it is open, from another that was made in its place; None
    where there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return (folder / DATABASE).stat().st_ino
    with suppress(FileNotFoundError, NotADirectoryError):
        return (folder.stat().st_ino, written(folder / SETTINGS)) if whole(folder) else None
    return None


def empty(folder: Path) -> None:
    """Remove what a server keeps for the knowledge base in the folder."""
    location = read_config(folder).location
    if isinstance(location, Address):
        drop_milvus(location)


def written(file: Path) -> Hashable:
    """Changes with each writing of a file of settings; None where there is none."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def check_name(name: str) -> str:
    """`name`, if a knowledge base may have it: it is a folder's name then."""
    if not _fit(name) or unicodedata.normalize("NFKC", name) != name:
        raise UserError(
            "{name!r} is no name for a knowledge base; use up to 64 letters, digits, _ and - "
            "({longest} bytes)",
            name=name[:80],
            longest=LONGEST,
        )
    return name


def _fit(name: str) -> bool:
    return bool(re.fullmatch(schemas.NAME, name)) and len(name.encode()) <= LONGEST


@dataclass
class Open:
    """A knowledge base that is open. `current` is a pipeline and the stamp of what it was made from."""

    path: Path
    store: Store
    embedder: Embedder
    incarnation: Hashable
    current: tuple[Pipeline, Hashable] | None = None
    users: int = 0
    closing: bool = False


class Bases:
    """Knowledge bases by name, below `options.data`. Others may make, change and delete them too.

    `work` is a folder of this server alone: what is not made whole yet, or is not all gone.
    """

    def __init__(
        self,
        options: ServerOptions,
        models: Models,
        members: Members,
        work: Path,
        opened: Encoders | None = None,
    ) -> None:
        self.options, self.models, self.members, self.work = options, models, members, work
        self._guard = threading.RLock()
        self._open: OrderedDict[str, Open] = OrderedDict()
        self._opening: dict[str, threading.Lock] = {}
        # More cores make a short text no faster; the slots keep the others busy.
        opened = opened or encoders(options.cache, threads=min(2, CORES))
        self.encoder = cache(lambda name, backend: Remembered(opened(name, backend)))

    def names(self) -> list[str]:
        found = sorted(path.name for path in self.options.data.glob("*/"))
        return [name for name in found if self._folder(name)]

    def path(self, name: str) -> Path:
        """The folder of a knowledge base that is there. Raises `Unknown`."""
        path = self._folder(name)
        if path is None:
            raise no_base(name)
        return path

    def _folder(self, name: str) -> Path | None:
        if not _fit(name):
            return None
        path = self.options.data / name
        return path if whole(path) else None

    @contextmanager
    def reading(self, name: str) -> Iterator[Pipeline]:
        """The pipeline as the knowledge base and its settings are now. Raises `Unknown`, also where
        it is deleted while it is read."""
        path = self.path(name)
        now = incarnation(path)
        try:
            with self._names():
                held = self._held(name, path, now)
                try:
                    yield self._current(held)
                finally:
                    with self._guard:
                        held.users -= 1
                        if held.closing and not held.users:
                            held.store.close()
        except (OSError, UserError) as problem:
            if now is not None and incarnation(path) == now:
                raise
            raise no_base(name) from problem

    @contextmanager
    def _names(self) -> Iterator[None]:
        """What goes wrong names files as they lie in the data folder: clients are told of it."""
        try:
            yield
        except UserError as problem:
            below(self.options.data, problem)
            raise

    def _held(self, name: str, path: Path, now: Hashable) -> Open:
        """The open knowledge base, with one more user."""
        with self._guard:
            opening = self._opening.setdefault(name, threading.Lock())
        with opening:  # a server that does not answer keeps nobody from other knowledge bases
            with self._guard:
                held = self._open.get(name)
                if held and held.incarnation == now:
                    self._open.move_to_end(name)
                    held.users += 1
                    return held
                self._let_go(name)  # deleted and made anew
            held = self._opened(path, now)
            with self._guard:
                self._open[name] = held
                while len(self._open) > OPEN:
                    self._let_go(next(iter(self._open)))
        return held

    def _opened(self, path: Path, now: Hashable) -> Open:
        config = read_config(path)
        store = config.open_store()
        try:
            embedder = encoder_of(store, config.embed, self.encoder)
        except BaseException:
            store.close()
            raise
        return Open(path, store, embedder, now, users=1)

    def _let_go(self, name: str) -> None:
        with self._guard:
            held = self._open.pop(name, None)
            if held:
                held.closing = True
                if not held.users:
                    held.store.close()

    def _current(self, held: Open) -> Pipeline:
        stamp = held.store.sequence, written(held.path / SETTINGS)
        if held.current is None or held.current[1] != stamp:
            config = self.config(held.path)
            generator = self.models.generator(config.generate)
            norm = score_norm_of(held.store, held.embedder, stale=True)
            pipeline = pipeline_of(
                config, held.store, held.embedder, norm, Translator("en"), generator
            )
            held.current = pipeline, stamp
            return pipeline
        return held.current[0]

    def config(self, path: Path) -> Config:
        """The knowledge base's settings, with the server's language model if they name none."""
        config, usual = read_config(path), self.options.generate
        if config.generate.model or usual is None:
            return config
        generate = replace(config.generate, model=usual.model, quant=usual.quant)
        return replace(config, generate=generate)

    def sampling(self, name: str, **said: Any) -> Sampling:
        """How the knowledge base's language model picks its words, but for what is `said`."""
        path = self.path(name)
        with self._names():
            return replace(self.config(path).generate.sampling, **said)

    def listed(self, who: Principal, say: Translator) -> list[schemas.KnowledgeBase]:
        """All that the key may read; what is wrong with one is told in its place."""
        found = []
        for name in self.names():
            if who.may("read", name):
                try:
                    found.append(self.describe(name, who))
                except Unknown:
                    continue  # deleted meanwhile
                except UserError as problem:
                    told = say(problem.message)
                    found.append(schemas.KnowledgeBase.unusable(name, who.scopes(name), told))
        return found

    def describe(self, name: str, who: Principal) -> schemas.KnowledgeBase:
        with self.reading(name) as pipeline:
            info, config = pipeline.store.info(), pipeline.config
        return schemas.KnowledgeBase(
            name=name,
            documents=info.documents,
            chunks=info.chunks,
            bytes=info.bytes,
            created=info.created,
            sequence=info.sequence,
            embedder=str(info.identity.options["embedder"]),
            instruction=config.prompt.instruction,
            adapter=Path(config.generate.adapter).name,
            generator=pipeline.generator.name if pipeline.generator else "",
            scopes=who.scopes(name),
        )

    # Changing

    def adapters(self) -> list[str]:
        """Names that a knowledge base may choose."""
        return offered(self.options.adapters)

    def create(self, wanted: schemas.NewKnowledgeBase) -> None:
        """A new, empty knowledge base, whole or not at all. Raises `Taken`."""
        name = check_name(wanted.name)
        embedder = wanted.embedder or self.options.embedders[0]
        check_choice("embedder", embedder, self.options.embedders)
        target, work = self.options.data / name, self._own_place()
        with self._names(), failures_named(target):
            work.mkdir()
            if self.options.store:
                address = f"{self.options.store}/kb_{secrets.token_hex(8)}"
                (work / SETTINGS).write_text(f'[store]\nurl = "{address}"\n', "utf-8")
            try:
                config, cache = self.config(work), self.options.cache
                writer = open_writer(
                    config, embedder=embedder, cache=cache, open_encoder=self.encoder
                )
                writer.store.close()
                write_choices(work, wanted, self.options, config.generate)
                with self.members.moment("making a knowledge base"):
                    if target.exists() or target.is_symlink():
                        raise Taken(
                            "there is a knowledge base {name} already; choose another name",
                            name=name,
                        )
                    work.rename(target)
                sync(self.options.data)
            except BaseException:
                if work.is_dir():
                    empty(work)
                raise
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def change(self, name: str, wanted: schemas.KnowledgeBaseChange) -> None:
        path = self.path(name)
        with self._names(), self.members.moment("changing settings"):
            write_choices(path, wanted, self.options, self.config(path).generate)

    def delete(self, name: str) -> None:
        """Remove a knowledge base and all that lies in its folder."""
        path, gone = self.path(name), self._own_place()
        with self._names(), failures_named(path):
            empty(path)  # a kill after it leaves a name that can be deleted again
            with self.members.moment("deleting"):
                if not whole(path):
                    raise no_base(name)
                path.rename(gone)
                sync(self.options.data)
        self._let_go(name)
        shutil.rmtree(gone, ignore_errors=True)

    def _own_place(self) -> Path:
        return self.work / secrets.token_hex(8)

    def close(self) -> None:
        for name in list(self._open):
            self._let_go(name)
