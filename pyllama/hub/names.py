"""The text a person types for a model becomes repository, revision and quantization.

Knows nothing of the disk or the network.
"""

import re
from dataclasses import dataclass

from pyllama.errors import HubError

DEMO = "smollm2"
COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(
    rf"(?P<repository>{_REPOSITORY}/{_REPOSITORY})"
    r"(?:@(?P<revision>[A-Za-z0-9_.+/-]+))?"
    r"(?::(?P<quantization>[A-Za-z0-9_.-]+))?"
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """`repository[@revision][:quantization]`, each part safe in a path and in a URL."""

    repository: str
    revision: str = "main"
    quantization: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        quantization = f":{self.quantization}" if self.quantization else ""
        return f"{self.repository}{revision}{quantization}"


def parse_name(text: str) -> ModelName:
    """Raises HubError for anything but `org/name[@revision][:quantization]`."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise HubError(f"{text!r}: expected a model's name, org/name[@revision][:quantization], or {DEMO}")
    repository, revision = match["repository"], match["revision"] or "main"
    # The cache's folder names join the parts by "--"; ".." would climb out of it.
    if "--" in repository or ".." in repository or repository.endswith(".git"):
        raise HubError(f"{text!r}: a repository's name holds no '--', no '..' and no '.git' at its end")
    if any(part in ("", ".", "..") for part in revision.split("/")):
        raise HubError(f"{text!r}: {revision!r} is no branch, tag or commit")
    return ModelName(repository, revision, match["quantization"])
