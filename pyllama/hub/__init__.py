"""Names of models become paths of files: found in the cache, or fetched into it.

`resolve` never touches the network and imports nothing heavy; `pull` and
`ensure` do. Refuses to know what the files hold.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pyllama.hub.find import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyllama.hub.fetch import Wanted
    from pyllama.terminal.progress import Progress

__all__ = ["ensure", "pull", "resolve"]


def pull(
    name: str,
    progress: "Progress | None" = None,
    *,
    patterns: "Sequence[str]" = (),
    weights: bool = True,
    before: "Callable[[Wanted], None] | None" = None,
) -> Path:
    """Bring a model's files into the cache, as the hub has them now; return where the model is.

    name      `org/name[@revision][:quantization]`, or `smollm2`
    patterns  shell patterns of the weight files to take, instead of the usual choice
    weights   False: only the settings, the tokenizer and the index of the weights
    before    sees what is to be fetched, but for the demo, before it is; what it raises ends the pull

    Raises HubError. What an interrupted pull left behind is used by the next one.
    """
    from pyllama.hub.fetch import pull as pull_name

    return pull_name(name, progress, patterns, weights, before)


def ensure(name: str, progress: "Progress | None" = None) -> Path:
    """`resolve(name)`, after pulling it if it is a model's name and not in the cache yet."""
    from pyllama.hub.find import NotInCacheError

    try:
        return resolve(name)
    except NotInCacheError:
        return pull(name, progress)
