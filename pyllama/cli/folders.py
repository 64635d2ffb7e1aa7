"""Where pyllama keeps what is a person's own, by the XDG base directories."""

import os
from pathlib import Path


def state_folder() -> Path:
    """History and saved conversations."""
    return _xdg("XDG_STATE_HOME", "~/.local/state")


def config_folder() -> Path:
    """config.toml."""
    return _xdg("XDG_CONFIG_HOME", "~/.config")


def _xdg(variable: str, otherwise: str) -> Path:
    base = os.environ.get(variable, "")
    # The specification: a relative path is to be ignored.
    return Path(base if os.path.isabs(base) else os.path.expanduser(otherwise)) / "pyllama"
