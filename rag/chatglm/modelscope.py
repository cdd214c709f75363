"""ModelScope, through its plain HTTP interface: a list of files with their hashes, and the files."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from ingest.errors import UserError
from rag.chatglm.hub import Origin, absent, origin, wanted, without_revision

ENDPOINT = "https://www.modelscope.cn"
PAGE = "{endpoint}/models/{name}"
BRANCH = "master"
PIECE = 1 << 20
SECONDS = 30
"""Without a byte, after which a connection is given up."""


def address() -> str:
    return ENDPOINT


def copy(name: str, revision: str, *, cache: Path, weights: bool) -> Path | None:
    """The copy that was fetched before."""
    directory = _place(name, revision, cache)
    done = origin(directory) if weights else (directory / "config.json").is_file()
    return directory if done else None


def download(name: str, revision: str, *, cache: Path, weights: bool, endpoint: str) -> Path:
    """The directory, all wanted files in it, each checked by its hash, with a progress bar.

    `ConnectionError` where ModelScope can't be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import tqdm

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    api = f"{endpoint}/api/v1/models/{name}/repo"
    files = {file["Path"]: file for file in _list(api, name, revision, endpoint)}
    chosen = [files[path] for path in wanted(list(files), weights=weights)]
    directory = _place(name, revision, cache)
    directory.mkdir(parents=True, exist_ok=True)
    total = sum(int(file["Size"]) for file in chosen)
    with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        for file in chosen:
            query = urlencode({"Revision": revision or BRANCH, "FilePath": file["Path"]})
            _get_file(f"{api}?{query}", directory / file["Path"], file, bar)
    if weights:
        newest = max(files.values(), key=lambda file: file.get("CommittedDate") or 0)
        commit = newest.get("Revision") or revision or BRANCH
        Origin(endpoint, name, commit).save(directory)
    return directory


def _place(name: str, revision: str, cache: Path) -> Path:
    return cache / "modelscope" / (f"{name}@{revision}" if revision else name)


def _list(api: str, name: str, revision: str, endpoint: str) -> list[dict[str, Any]]:
    query = urlencode({"Revision": revision or BRANCH, "Recursive": "False"})
    try:
        with urlopen(f"{api}/files?{query}", timeout=SECONDS) as answer:
            files = json.load(answer)["Data"]["Files"]
    except HTTPError as error:
        with error:
            if error.code in (400, 401, 403, 404):
                asked = without_revision(name, revision, endpoint) if revision else None
                raise asked or absent(name, endpoint) from None
            raise ConnectionError(str(error)) from None
    except OSError as error:
        raise _unreachable(error) from None
    except (ValueError, KeyError, TypeError):
        raise ConnectionError("its answer is not ModelScope's") from None
    return [file for file in files if file.get("Type") != "tree" and "/" not in file["Path"]]


def _get_file(url: str, path: Path, file: dict[str, Any], bar: Any) -> None:
    """The file at `path`, whole; what an earlier try has of it is kept."""
    if path.is_file() and path.stat().st_size == int(file["Size"]):
        bar.update(int(file["Size"]))
        return
    part = path.with_name(f"{path.name}.incomplete")
    have = part.stat().st_size if part.is_file() else 0
    if have < int(file["Size"]):
        _append(url, part, have, bar)
    else:
        bar.update(have)
    _verify(part, file)
    part.replace(path)


def _append(url: str, part: Path, have: int, bar: Any) -> None:
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=SECONDS) as answer:
            resumed = answer.status == 206
            bar.update(have if resumed else 0)
            with part.open("ab" if resumed else "wb") as out:
                while piece := answer.read(PIECE):
                    out.write(piece)
                    bar.update(len(piece))
    except (URLError, TimeoutError, ConnectionError) as error:
        raise _unreachable(error) from None


def _unreachable(error: OSError) -> ConnectionError:
    return ConnectionError(str(error.reason if isinstance(error, URLError) else error))


def _verify(part: Path, file: dict[str, Any]) -> None:
    """A file cut short stays for the next try; one with another hash is thrown away."""
    size, expected = part.stat().st_size, file.get("Sha256")
    if size < int(file["Size"]):
        raise ConnectionError(f"{file['Path']} ended after {size} of {file['Size']} bytes")
    digest = sha256()
    with part.open("rb") as read:
        while piece := read.read(PIECE):
            digest.update(piece)
    if expected and digest.hexdigest() != expected:
        part.unlink()
        raise UserError(
            "{file} arrived with the hash {hexdigest}, ModelScope lists {expected}; try again",
            file=file["Path"],
            hexdigest=digest.hexdigest(),
            expected=expected,
        )
