"""A model's directory, by its path or its name on Hugging Face or ModelScope.

A name without a revision means the copy that was downloaded first, whose commit is recorded beside
it; `name@main` means the newest.
"""

import json
import re
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from ingest.errors import UserError
from ingest.i18n import Translatable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
RECORD = "origin.json"
"""A file beside the model's. It is written last, so it also shows that all of them are complete."""
WEIGHTS = (".safetensors", ".bin")  # the second is only downloaded if the first is missing
OTHERS = (".json", ".model", ".txt", ".jinja")
"""Other files that are needed. Code (*.py) is neither run nor downloaded."""
MODELSCOPE = "modelscope:"
MODELSCOPE_ADDRESS = "https://www.modelscope.cn"
BRANCH = "master"  # ModelScope's default
PIECE = 1 << 20
SECONDS = 30  # without a byte until a connection is closed
OFFLINE = Translatable("HF_HUB_OFFLINE is set")


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a directory's files."""

    hub: str
    name: str
    revision: str  # the commit


def origin(directory: Path) -> Origin | None:
    """The record of the download; None if `fetch` did not write the directory."""
    try:
        return Origin(**json.loads((directory / RECORD).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fetch(name: str, *, cache: Path, weights: bool = True, endpoint: str | None = None) -> Path:
    """The directory of a model: `name` is a path, `owner/name[@revision]` on the Hugging Face hub, or
    `modelscope:owner/name[@revision]`.

    Users may also put the files into `cache/owner/name`. Without `weights`, only config.json is sure
    to be there. A new try downloads only what is missing: whole files from Hugging Face, bytes from
    ModelScope. Raises `UserError` if there is no such model, or neither a copy nor a network."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _snapshot(path)
    repository, _, revision = name.removeprefix(MODELSCOPE).partition("@")
    folder = cache / repository
    if not NAME.fullmatch(repository):
        raise UserError(
            "there is no folder {name}; give a model's folder, or its name on a hub: owner/name", name=name
        )
    if not revision and (folder / "config.json").is_file():
        return folder
    if name.startswith(MODELSCOPE):
        hub = ModelScope(repository, revision, endpoint, cache)
    else:
        hub = HuggingFace(repository, revision, endpoint)
    try:
        if copy := hub.copy(weights):
            return copy
        directory, commit = hub.download(weights)
    except (ConnectionError, TimeoutError, URLError) as error:
        why = getattr(error, "reason", None) or (error.args or [""])[0]
        if not isinstance(why, Translatable):
            why = (str(why).splitlines() or [type(error).__name__])[0]
        raise UserError(
            "{name} is not on this machine and {endpoint} can't be reached ({why}); on a machine "
            "with a network, download {page} (all files but *.py; of the weights the *.safetensors, "
            "or the *.bin if there are none) and put the files into {folder}",
            name=name, endpoint=hub.endpoint, why=why, page=hub.page, folder=folder,
        ) from None  # fmt: skip
    if weights:
        record = Origin(hub.endpoint, repository, commit)
        (directory / RECORD).write_text(json.dumps(asdict(record), indent=2), "utf-8")
    return directory


def _snapshot(path: Path) -> Path:
    """The model in a folder of Hugging Face's cache, `models--owner--name`; any other folder itself."""
    root = path.parent if path.name == "snapshots" else path
    if (path / "config.json").is_file() or not (root / "snapshots").is_dir():
        return path
    snapshots = sorted(each for each in (root / "snapshots").iterdir() if each.is_dir())
    main = root / "refs" / "main"
    commit = main.read_text("utf-8").strip() if main.is_file() else ""
    if len(snapshots) != 1:
        snapshots = [each for each in snapshots if each.name == commit] or snapshots
    if len(snapshots) != 1:
        raise UserError(
            "{path} is a folder of Hugging Face's cache with {count} snapshots; give one of them: {names}",
            path=path, count=len(snapshots), names=", ".join(map(str, snapshots)) or Translatable("none"),
        )  # fmt: skip
    return snapshots[0]


class HuggingFace:
    """Downloads with Hugging Face's library, which honours HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE
    and shares its cache with other tools."""

    def __init__(self, name: str, revision: str, endpoint: str | None) -> None:
        from huggingface_hub import constants

        self.name, self.revision = name, revision
        self.endpoint = endpoint or constants.ENDPOINT
        self.page = f"{self.endpoint}/{name}"
        self.offline = constants.HF_HUB_OFFLINE

    def copy(self, weights: bool) -> Path | None:
        """The directory that was downloaded first, or that of a commit; None if there is none.
        Offline, another tool's copy is taken too."""
        from huggingface_hub import try_to_load_from_cache

        if self.revision and not self.offline and not COMMIT.fullmatch(self.revision):
            return None  # a branch or tag may have moved
        needed = RECORD if weights and not self.offline else "config.json"
        path = try_to_load_from_cache(self.name, needed, revision=self.revision or None)
        return Path(path).parent if isinstance(path, str) else None

    def download(self, weights: bool) -> tuple[Path, str]:
        """Download with a progress bar: the directory and its commit; or raise `ConnectionError`."""
        from huggingface_hub import HfApi, errors, snapshot_download

        name, revision = self.name, self.revision or None
        try:
            info = HfApi(endpoint=self.endpoint).model_info(name, revision=revision)
            names = _needed_files([file.rfilename for file in info.siblings or []], weights)
            directory = snapshot_download(
                name, revision=revision, allow_patterns=names, endpoint=self.endpoint
            )
        except errors.RevisionNotFoundError:
            raise _absent(name, self.revision, self.endpoint) from None
        except errors.RepositoryNotFoundError:
            raise _absent(name, "", self.endpoint) from None
        except errors.OfflineModeIsEnabled:
            raise ConnectionError(OFFLINE) from None
        except (errors.HfHubHTTPError, errors.HTTPError, errors.LocalEntryNotFoundError) as error:  # pyright: ignore[reportPrivateImportUsage]  (httpx's, or httpx2's, by version)
            raise ConnectionError(str(error)) from None
        return Path(directory), Path(directory).name


class ModelScope:
    """Downloads with ModelScope's plain HTTP interface: a list of files with hashes, and the files."""

    def __init__(self, name: str, revision: str, endpoint: str | None, cache: Path) -> None:
        self.name, self.revision = name, revision
        self.endpoint = endpoint or MODELSCOPE_ADDRESS
        self.page = f"{self.endpoint}/models/{name}"
        self.api = f"{self.endpoint}/api/v1/models/{name}/repo"
        self.directory = cache / "modelscope" / (f"{name}@{revision}" if revision else name)

    def copy(self, weights: bool) -> Path | None:
        """The directory that was downloaded before; None if there is none."""
        complete = origin(self.directory) if weights else (self.directory / "config.json").is_file()
        return self.directory if complete else None

    def download(self, weights: bool) -> tuple[Path, str]:
        """As `HuggingFace.download`, with a check of each file's hash. Raises `ConnectionError`,
        `TimeoutError` or `URLError` if ModelScope can't be reached."""
        from huggingface_hub import constants
        from huggingface_hub.utils import tqdm

        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(OFFLINE)
        revision = self.revision or BRANCH
        files = {file["Path"]: file for file in self._list(revision)}
        selection = [files[path] for path in _needed_files(list(files), weights)]
        self.directory.mkdir(parents=True, exist_ok=True)
        total = sum(int(file["Size"]) for file in selection)
        with tqdm(total=total, unit="B", unit_scale=True, desc=self.name, disable=None) as bar:
            for file in selection:
                query = urlencode({"Revision": revision, "FilePath": file["Path"]})
                _get_file(f"{self.api}?{query}", self.directory / file["Path"], file, bar)
        newest = max(files.values(), key=lambda file: file.get("CommittedDate") or 0)
        return self.directory, newest.get("Revision") or revision

    def _list(self, revision: str) -> list[dict[str, Any]]:
        query = urlencode({"Revision": revision, "Recursive": "False"})
        try:
            with urlopen(f"{self.api}/files?{query}", timeout=SECONDS) as answer:
                files = json.load(answer)["Data"]["Files"]
        except HTTPError as error:
            with error:
                if error.code in (400, 401, 403, 404):
                    raise _absent(self.name, self.revision, self.endpoint) from None
                raise ConnectionError(str(error)) from None
        except (ValueError, KeyError, TypeError):
            raise ConnectionError(Translatable("the answer is not ModelScope's")) from None
        return [file for file in files if file.get("Type") != "tree" and "/" not in file["Path"]]


def _get_file(url: str, path: Path, file: dict[str, Any], bar: Any) -> None:
    """Download a file to `path`, after the bytes that an earlier try has left."""
    size = int(file["Size"])
    if path.is_file() and path.stat().st_size == size:
        bar.update(size)
        return
    part = path.with_name(f"{path.name}.incomplete")
    start = end = part.stat().st_size if part.is_file() else 0
    bar.update(start)
    if start < size:
        request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with urlopen(request, timeout=SECONDS) as answer:
            partial = answer.status == 206
            bar.update(0 if partial else -start)
            with part.open("ab" if partial else "wb") as out:
                while piece := answer.read(PIECE):
                    bar.update(out.write(piece))
                end = out.tell()
    if end < size:  # the part stays for the next try
        fields = {"file": path.name, "end": end, "size": size}
        raise ConnectionError(Translatable("{file} ended after {end} of {size} bytes", **fields))
    with part.open("rb") as data:
        found, expected = file_digest(data, "sha256").hexdigest(), file.get("Sha256")
    if expected and found != expected:
        part.unlink()
        raise UserError(
            "{file} arrived with the hash {found}, but ModelScope lists {expected}; try again",
            file=file["Path"], found=found, expected=expected,
        )  # fmt: skip
    part.replace(path)


def _needed_files(names: list[str], weights: bool) -> list[str]:
    """The files to download of a repository; raises `UserError` if it holds no config.json."""
    if "config.json" not in names:
        raise UserError("the repository holds no config.json, so it is not a model; check the name")
    if not weights:
        return ["config.json"]
    kind = next((kind for kind in WEIGHTS if any(name.endswith(kind) for name in names)), WEIGHTS[0])
    unused = (RECORD, *(f"{other}.index.json" for other in WEIGHTS if other != kind))
    names = [name for name in names if name.endswith((kind, *OTHERS)) or "LICENSE" in name]
    return [name for name in names if "/" not in name and not name.endswith(unused)]


def _absent(name: str, revision: str, address: str) -> UserError:
    """The error that a hub has no such model, or not this revision of it."""
    if revision:
        return UserError(
            "{name} has no revision {revision!r} at {address}; leave @{revision} out, or give a "
            "branch, a tag or a commit",
            name=name, revision=revision, address=address,
        )  # fmt: skip
    return UserError(
        "{address} has no model {name} that can be read without logging in; check the name, "
        "or log in (for Hugging Face: hf auth login)",
        address=address,
        name=name,
    )
