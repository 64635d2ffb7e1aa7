"""The environment becomes the hub's address and the token for it, by the same variables and file as huggingface_hub's.

Refuses to know what is asked there.
"""

import os
import re

from pyllama.errors import HubError, reason_of, shown
from pyllama.hub.cache import expanded, hf_home, is_on
from pyllama.hub.http import is_address

DEFAULT = "https://huggingface.co"
_VISIBLE = re.compile(r"[!-~]+")


def hub_endpoint() -> str:
    """HF_ENDPOINT or the public hub, without a slash at the end. Raises HubError."""
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT
    if not is_address(endpoint) or not _VISIBLE.fullmatch(endpoint) or re.search("[?#]", endpoint):
        given = shown(endpoint.rpartition("@")[2])  # what stands before it may be a password
        raise HubError(f"HF_ENDPOINT: {given}, expected an http or https URL with neither a user nor a query in it")
    return endpoint.rstrip("/")


def authorization() -> dict[str, str]:
    """The header that shows the token, for the endpoint's own origin only; empty without one. Raises HubError."""
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return {}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := _clean(os.environ.get(name, ""), name):
            return token
    path = expanded(os.environ.get("HF_TOKEN_PATH") or os.path.join(hf_home(), "token"))
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _clean(file.read(1 << 16), path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise HubError(f"{path}: {reason_of(error)}; the token in it is needed, or HF_TOKEN") from error


def _clean(text: str, where: str) -> dict[str, str]:
    token = text.strip()
    if token and not _VISIBLE.fullmatch(token):
        raise HubError(f"{where}: holds no token: expected letters, digits and signs, without a space")
    return {"Authorization": f"Bearer {token}"} if token else {}
