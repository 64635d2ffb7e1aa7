"""Which web page sent a request, if one did: what a browser says of it, against what this server calls itself.

A browser sends some requests of any page without asking: forms, pictures, and a script's POST whose body is plain text
or has no type. It tells on the page all the same, in headers that no script can set: Origin and Sec-Fetch-Site.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers

_PORTS = {"http": 80, "https": 443}
ANY = "*"


def canonical(origin: str) -> str:
    """An origin as a browser writes it: small letters, no path, no port that goes without saying."""
    text = origin.strip().rstrip("/").lower()
    scheme, separator, host = text.partition("://")
    default = f":{_PORTS[scheme]}" if separator and scheme in _PORTS else None
    return text.removesuffix(default) if default else text


def is_own(origin: str, host: str) -> bool:
    """Whether a page of this origin came from the server that the request calls by this Host header.

    The scheme is not compared: a proxy in front may speak TLS, and no other program can listen on the port.
    """
    found = _host_and_port(origin)
    scheme = origin.partition("://")[0].lower()
    return found is not None and scheme in _PORTS and found == _host_and_port(f"{scheme}://{host.strip()}")


def _host_and_port(url: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(url.lower())
        if not parts.hostname or parts.path.strip("/") or parts.username is not None:
            return None
        return parts.hostname.rstrip("."), parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return None


def foreign(headers: Headers, method: str, allowed: frozenset[str]) -> str | None:
    """The page of another origin that sent the request, as text for people; None if none did, or it may.

    allowed  canonical origins, or ANY among them
    """
    if ANY in allowed:
        return None
    origins = headers.getlist("origin")
    for origin in origins:
        if canonical(origin) not in allowed and not is_own(origin, headers.get("host", "")):
            return f"a page of {origin[:100]!r}"
    if origins:
        return None
    # A picture, a script or a form with GET has no Origin. A link that is followed is the person's own doing.
    site = headers.get("sec-fetch-site", "none").strip().lower()
    if site in ("none", "same-origin"):
        return None
    followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
    return None if followed and method in ("GET", "HEAD") else "a page of another origin"
