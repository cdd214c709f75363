"""The Hugging Face hub, through its own library and into its own cache."""

from pathlib import Path

from rag.chatglm.hub import RECORD, Origin, absent, wanted, without_revision

PAGE = "{endpoint}/{name}"


def address() -> str:
    """HF_ENDPOINT, or the hub's own address."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def copy(name: str, revision: str, *, cache: Path, weights: bool) -> Path | None:
    """The copy in the hub's cache: the one that was fetched first, or that of a commit.

    Offline, any copy will do, also one that another tool fetched.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    offline = constants.HF_HUB_OFFLINE
    if revision and not offline and not _is_commit(revision):
        return None  # a branch or tag: ask where it is now
    needed = RECORD if weights and not offline else "config.json"
    found = try_to_load_from_cache(name, needed, revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def download(name: str, revision: str, *, cache: Path, weights: bool, endpoint: str) -> Path:
    """The directory, all wanted files in it, with a progress bar on a terminal.

    `ConnectionError` where the hub can't be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (httpx's, or httpx2's, by version)
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi(endpoint=endpoint).model_info(name, revision=revision or None)
        names = wanted([file.rfilename for file in info.siblings or []], weights=weights)
        directory = Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=names, endpoint=endpoint
            )
        )
    except RevisionNotFoundError:
        raise without_revision(name, revision, endpoint) from None
    except RepositoryNotFoundError:
        raise absent(name, endpoint) from None
    except OfflineModeIsEnabled:
        raise ConnectionError("HF_HUB_OFFLINE is set") from None
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError) as error:
        raise ConnectionError(str(error)) from None
    if weights:
        Origin(endpoint, name, directory.name).save(directory)
    return directory


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")
