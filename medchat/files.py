"""Two small things about files that several modules need."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for what can be made again (converted bases and adapters).

    That is $MEDCHAT_CACHE, else `medchat` under $XDG_CACHE_HOME or ~/.cache.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medchat"
    return Path(os.environ.get("MEDCHAT_CACHE") or default)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
