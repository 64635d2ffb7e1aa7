"""A model's name becomes the commit it stands for and the files the hub lists for it.

Everything it answers comes from outside: names, sizes and hashes are checked
here, before any of them becomes a path. Downloads nothing itself.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

from pyllama.errors import CheckpointError, HubError, shown
from pyllama.hub.cache import is_offline
from pyllama.hub.endpoint import authorization, hub_endpoint
from pyllama.hub.http import Dropped, get, read, wait
from pyllama.hub.names import COMMIT, ModelName
from pyllama.strict_json import MAX_NBYTES, parse_object

_DIGEST = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")  # git's SHA-1, or SHA-256
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
    endpoint, headers = hub_endpoint(), authorization()
    where = f"{model}: {endpoint}"
    try:
        answer = parse_object(_ask(model, endpoint, headers, waiting), f"{where} sent a listing that makes no sense")
        # A file that cannot be trusted is refused when it is asked for, so that an
        # odd name nobody wants does not stand in the way of the rest.
        files = [_file(sibling) for sibling in answer.get("siblings") or []]
    except CheckpointError as error:
        raise HubError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise HubError(f"{where} sent a listing that makes no sense (siblings: {type(error).__name__})") from error
    commit = answer.get("sha")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise HubError(f"{where} gave {shown(commit)} as its commit, expected 40 hexadecimal digits")
    if not all(isinstance(file.name, str) for file in files):
        raise HubError(f"{where} lists a file whose name is no text")
    return Listing(model, endpoint, commit, bool(answer.get("gated")), {file.name: file for file in files}, headers)


def url_of(file: HubFile, listing: Listing) -> str:
    """Where to fetch a checked file, at this very commit."""
    return f"{listing.endpoint}/{listing.model.repository}/resolve/{listing.commit}/{quote(file.name)}"


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
    if not isinstance(file.digest, str) or not _DIGEST.fullmatch(file.digest):
        raise HubError(f"{where}: hash {file.digest!r}, expected a SHA-256 or a git hash")


def refusal(model: ModelName, endpoint: str, status: int, gated: bool = False) -> HubError:
    """What a status that is no success means for a person, and what to do about it."""
    page = f"{endpoint}/{model.repository}"
    if gated:
        problem = f"gated (HTTP {status}): accept its licence at {page}, then set HF_TOKEN to a token of that account"
    elif status == 404:
        problem = f"not found at {endpoint} (HTTP 404); check the name"
    elif status in (401, 403):
        problem = (
            f"no access (HTTP {status}): check the name at {page}; if it is private, or gated, "
            "set HF_TOKEN to a token that may read it"
        )
    elif status in (429, 503):
        problem = f"{endpoint} is busy (HTTP {status}), try again later"
    else:
        problem = f"{endpoint} answered HTTP {status}"
    return HubError(f"{model}: {problem}")


def _ask(model: ModelName, endpoint: str, headers: dict[str, str], waiting: Callable[[str], None]) -> bytes:
    """The hub's answer about one revision, with the size and hash of each file (blobs=true)."""
    url = f"{endpoint}/api/models/{model.repository}/revision/{quote(model.revision, safe='')}?blobs=true"
    tries = 0
    while True:
        try:
            with get(str(model), url, headers) as response:
                if response.status == 200:
                    return _read_all(response, model, endpoint)
                code = response.headers.get("X-Error-Code")
                if code == "RevisionNotFound":
                    raise HubError(f"{model}: {endpoint}/{model.repository} has no revision {model.revision!r}")
                raise refusal(model, endpoint, response.status, code == "GatedRepo")
        except Dropped as dropped:
            if not dropped.status:
                raise HubError(f"{model}: cannot reach {endpoint}: {dropped.reason}") from dropped
            if not wait(dropped, tries, waiting):
                raise refusal(model, endpoint, dropped.status) from dropped
            tries += 1


def _read_all(response: HTTPResponse, model: ModelName, endpoint: str) -> bytes:
    body = bytearray()
    while block := read(response, 1 << 16):
        body += block
        if len(body) > MAX_NBYTES:
            raise HubError(f"{model}: {endpoint} sends a listing of more than {MAX_NBYTES} bytes")
    if response.length:
        raise Dropped("the connection broke")
    return bytes(body)


def _file(sibling: dict[str, Any]) -> HubFile:
    large = sibling.get("lfs")
    if large is not None:
        return HubFile(sibling["rfilename"], large.get("size"), large.get("sha256"))
    return HubFile(sibling["rfilename"], sibling.get("size"), sibling.get("blobId"))  # type: ignore[arg-type]
