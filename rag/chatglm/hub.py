"""A model's directory, by its path or its name on Hugging Face or ModelScope.

A name without a revision means the copy that was downloaded first, whose commit is recorded beside
it; `name@main` means the newest.
"""

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path

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
    to be there. A new try downloads only what is missing. ModelScope needs its library (the extra
    `modelscope`). Raises `UserError` if there is no such model, or neither a copy nor a network."""
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
    except ConnectionError as error:
        why = error.args[0] if isinstance(error.args[0], Translatable) else str(error).partition("\n")[0]
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
    """Downloads with ModelScope's library, which resumes a file and checks its hash."""

    def __init__(self, name: str, revision: str, endpoint: str | None, cache: Path) -> None:
        self.name, self.revision = name, revision
        self.endpoint = endpoint or MODELSCOPE_ADDRESS
        self.page = f"{self.endpoint}/models/{name}"
        self.directory = cache / "modelscope" / (f"{name}@{revision}" if revision else name)

    def copy(self, weights: bool) -> Path | None:
        """The directory that was downloaded before; None if there is none."""
        complete = origin(self.directory) if weights else (self.directory / "config.json").is_file()
        return self.directory if complete else None

    def download(self, weights: bool) -> tuple[Path, str]:
        """As `HuggingFace.download`."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(OFFLINE)
        from modelscope_hub import HubApi, errors

        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # it logs errors that it raises
        api, revision = HubApi(endpoint=self.endpoint), self.revision or BRANCH
        try:
            files = api.legacy.list_repo_files(self.name, "model", revision, recursive=False)
            names = _needed_files([file["Path"] for file in files if file.get("Type") != "tree"], weights)
            chosen = [file for file in files if file["Path"] in names]
            api.download_repo(
                self.name, "model", revision=revision, local_dir=self.directory, file_list=chosen
            )
        except (errors.NotExistError, errors.AuthenticationError, errors.PermissionDeniedError):
            raise _absent(self.name, self.revision, self.endpoint) from None
        except errors.HubError as error:
            raise ConnectionError(str(error)) from None
        newest = max(files, key=lambda file: file.get("CommittedDate") or 0)
        return self.directory, newest.get("Revision") or revision


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
