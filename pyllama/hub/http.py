"""A GET over urllib that a hub, a proxy or a storage host answers: redirects, tries, and words for what went wrong.

Over urllib: it honours the proxy and certificate settings and costs 15 ms more than http.client to import. Knows
neither repositories nor files.
"""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from pyllama.errors import HubError, reason_of
from pyllama.version import __version__

TIMEOUT_S = 30.0
MAX_REDIRECTS = 10
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # as many tries as there are, and one more
LONGEST_WAIT_S = 300.0  # the Hub's rate limit counts in windows of five minutes
_REDIRECTS = {301, 302, 303, 307, 308}
_PORTS = {"http": 80, "https": 443}
# Compressed bytes have other ranges and another hash.
_ALWAYS = {"User-Agent": f"pyllama/{__version__}", "Accept-Encoding": "identity"}
_ANYWHERE = {*_ALWAYS, "Range"}  # a storage host gets no token, and has an ETag of its own that If-Range would not meet


class Dropped(Exception):
    """Perhaps worth another try: what happened, and the answer's status (0: there was none) and Retry-After."""

    def __init__(self, what: str, reason: str = "", status: int = 0, retry_after: str | None = None) -> None:
        super().__init__(f"{what} ({reason})" if reason else what)
        self.reason = reason or what
        self.status = status
        self.retry_after = (retry_after or "").strip()


def get(
    label: str,
    url: str,
    headers: Mapping[str, str],
    look: Callable[[http.client.HTTPResponse], None] = lambda response: None,
) -> http.client.HTTPResponse:
    """What `url`, or where it redirects to, answers; any status that is neither a redirect nor worth another try.

    label    begins every message
    headers  sent to the URL's own origin only, but for Range: they carry the token
    look     sees every answer on the way; what it raises ends the request

    Raises HubError, and Dropped.
    """
    sent, first = {**_ALWAYS, **headers}, url
    for _ in range(MAX_REDIRECTS):
        response = _open(label, url, sent)
        status = response.status
        try:
            look(response)
            if status in (408, 425, 429) or status >= 500:
                asked = response.headers.get("Retry-After")
                raise Dropped(f"{host(url)} answered HTTP {status}", status=status, retry_after=asked)
            if status not in _REDIRECTS:
                return response
            url = redirect_target(label, url, response.headers.get("Location") or "")
            if not same_origin(url, first):
                sent = {name: value for name, value in sent.items() if name in _ANYWHERE}
        except BaseException:
            response.close()
            raise
        response.close()
    raise HubError(f"{label}: more than {MAX_REDIRECTS} redirects, the last to {host(url)}")


def read(response: http.client.HTTPResponse, count: int) -> bytes:
    """Up to `count` bytes as they come; none at the end. Raises Dropped."""
    try:
        return response.read1(count)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Dropped("the connection broke", _reason(error)) from error


def wait(dropped: Dropped, tries: int, note: Callable[[str], None]) -> bool:
    """Sleep as long as the server asks for, in reason, else as RETRY_DELAYS_S says; False, at once, after the last try.

    tries  made before the one that was dropped
    note   told what the pause is for
    """
    if tries >= len(RETRY_DELAYS_S):
        return False
    delay_s = RETRY_DELAYS_S[tries]
    if dropped.retry_after.isascii() and dropped.retry_after.isdigit():  # dates are not read
        delay_s = min(max(float(dropped.retry_after[:6]), delay_s), LONGEST_WAIT_S)
    note(f"{dropped}, trying again in {delay_s:.0f} s")
    time.sleep(delay_s)
    note("")
    return True


def is_address(url: str) -> bool:
    """Whether it is an http or https URL without a user in it."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.scheme in _PORTS and parts.port != 0 and not parts.username
    except ValueError:
        return False


def redirect_target(label: str, url: str, location: str) -> str:
    """Where an answer of `url` sends us. Raises HubError if nobody should go there."""
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    if not location or not is_address(target):
        raise HubError(f"{label}: {host(url)} redirects to an address that is no http or https URL")
    if url.startswith("https:") and not target.startswith("https:"):
        raise HubError(f"{label}: {host(url)} redirects from https to plain http, refused")
    return target


def host(url: str) -> str:
    """Host and port, and nothing that may be secret: no user, no signed query."""
    return urlsplit(url).netloc.rpartition("@")[2]


def same_origin(url: str, other: str) -> bool:
    return _origin(url) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


def _open(label: str, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    # HTTP and HTTPS through the usual proxies, and nothing else: no file:, no redirects of its own.
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    try:
        response: http.client.HTTPResponse = opener.open(urllib.request.Request(url, None, headers), timeout=TIMEOUT_S)
        return response
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise HubError(f"{label}: {host(url)}: {error.reason.verify_message}") from error
        raise Dropped(f"cannot reach {host(url)}", _reason(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(f"{host(url)} broke the connection", _reason(error)) from error
    except ValueError as error:
        raise HubError(f"{label}: sent to an address that is none, at {host(url)}") from error


def _reason(error: Any) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT_S:.0f} s"
    return reason_of(error).strip()[:120] or type(error).__name__
