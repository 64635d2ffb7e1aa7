"""A model's name becomes the commit it stands for and the files the hub lists for it.

The one place that imports huggingface_hub, for listing, URLs and tokens.
Everything it answers comes from outside: names, sizes and hashes are checked
here, before any of them becomes a path. Downloads nothing itself.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyllama.errors import HubError
from pyllama.hub.cache import is_offline
from pyllama.hub.names import COMMIT, ModelName
from pyllama.hub.retry import RETRY_DELAYS_S, retry_after_s
from pyllama.version import __version__

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
NBYTES_LIMIT = 1 << 50


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a commit, and what must come out of fetching it.

    digest is the SHA-256 of a large file, the git hash (SHA-1) of a small one,
    and the name of its blob in the cache.
    """

    name: str
    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a name stands for right now. files by name; headers carry the token, for the endpoint only."""

    model: ModelName
    endpoint: str
    commit: str
    gated: bool
    files: dict[str, HubFile]
    headers: dict[str, str]


def list_files(model: ModelName, waiting: Callable[[str], None] = lambda text: None) -> Listing:
    """Ask the hub. Raises HubError. `waiting(text)` says what a pause is for."""
    if is_offline():
        raise HubError(f"{model}: HF_HUB_OFFLINE is set, so nothing can be fetched; unset it")
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            "huggingface_hub, which lists what to fetch, is not installed: pip install pyllama[hub]"
        ) from error

    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = huggingface_hub.HfApi(endpoint=endpoint, library_name="pyllama", library_version=__version__)
    answer = _ask(api, model, waiting)
    commit = answer.sha
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise HubError(
            f"{model}: {api.endpoint} gave {commit!r} as its commit, expected 40 hexadecimal digits"
        )
    # A file that cannot be trusted is refused when it is asked for, so that an
    # odd name nobody wants does not stand in the way of the rest.
    files = [HubFile(sibling.rfilename, *_size_and_digest(sibling)) for sibling in answer.siblings or []]
    if not all(isinstance(file.name, str) for file in files):
        raise HubError(f"{model}: {api.endpoint} lists a file whose name is no text")
    return Listing(
        model, api.endpoint, commit, bool(answer.gated), {file.name: file for file in files}, _headers()
    )


def url_of(file: HubFile, listing: Listing) -> str:
    """Where to fetch a checked file, at this very commit."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.model.repository, file.name, revision=listing.commit, endpoint=listing.endpoint)


def check(file: HubFile, listing: Listing) -> None:
    """Refuse a file whose name, size or hash could do harm. HubError names it."""
    where = f"{listing.model}: {file.name!r} as listed by {listing.endpoint}"
    parts = file.name.split("/")
    if any(part in ("", ".", "..") or part.endswith((".", " ")) for part in parts):
        raise HubError(f"{where}: a file's name must stay inside the repository")
    if "\\" in file.name or ":" in file.name or _UNPRINTABLE.search(file.name):
        raise HubError(f"{where}: a file's name holds no backslash, colon or control character")
    if len(file.name) > 1000 or any(len(part.encode()) > 255 for part in parts):
        raise HubError(f"{where}: the name is too long")
    if not isinstance(file.nbytes, int) or not 0 <= file.nbytes < NBYTES_LIMIT:
        raise HubError(f"{where}: size {file.nbytes!r}, expected a number of bytes")
    if not isinstance(file.digest, str) or not (
        _SHA256.fullmatch(file.digest) or _SHA1.fullmatch(file.digest)
    ):
        raise HubError(f"{where}: hash {file.digest!r}, expected a SHA-256 or a git hash")


def access_error(model: ModelName, endpoint: str, status: int, gated: bool) -> HubError:
    """What to do about a 401, 403 or 404."""
    page = f"{endpoint}/{model.repository}"
    if gated:
        return HubError(
            f"{model}: gated (HTTP {status}): accept its licence at {page}, then set HF_TOKEN to a token "
            "of that account"
        )
    if status == 404:
        return HubError(f"{model}: not found at {endpoint} (HTTP 404); check the name")
    return HubError(
        f"{model}: no access (HTTP {status}): check the name at {page}; if it is private, or gated, "
        "set HF_TOKEN to a token that may read it"
    )


def _ask(api: Any, model: ModelName, waiting: Callable[[str], None]) -> Any:
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            return api.model_info(model.repository, revision=model.revision, files_metadata=True, timeout=30)
        except Exception as error:
            # Client and JSON parser are not ours: whatever they raise, it is the hub's answer that failed.
            status = _status(error)
            if delay_s is None or (status != 429 and status < 500):
                raise _listing_error(api.endpoint, model, error) from error
            delay_s = retry_after_s(error.response.headers, delay_s)  # type: ignore[attr-defined]
            waiting(f"HTTP {status}, waiting {delay_s:.0f} s")
        time.sleep(delay_s)
    raise HubError(f"{model}: no answer from {api.endpoint}")


def _listing_error(endpoint: str, model: ModelName, error: Exception) -> HubError:
    from huggingface_hub import errors

    status = _status(error)
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{model}: {endpoint}/{model.repository} has no revision {model.revision!r}")
    if isinstance(error, errors.GatedRepoError) or status in (401, 403, 404):
        return access_error(model, endpoint, status, isinstance(error, errors.GatedRepoError))
    if status in (429, 503):
        return HubError(f"{model}: {endpoint} is busy (HTTP {status}), try again later")
    if status:
        return HubError(f"{model}: {endpoint} answered HTTP {status}")
    if isinstance(error, (KeyError, TypeError, ValueError, AttributeError)):
        return HubError(f"{model}: {endpoint} sent a listing that makes no sense ({type(error).__name__})")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return HubError(f"{model}: cannot reach {endpoint}: {first}")


def _status(error: Exception) -> int:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def _size_and_digest(sibling: Any) -> tuple[Any, Any]:
    if sibling.lfs is not None:
        return sibling.lfs.size, sibling.lfs.sha256
    return sibling.size, sibling.blob_id


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return dict(build_hf_headers(library_name="pyllama", library_version=__version__))
