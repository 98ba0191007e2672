"""Encryption of what a visitor's browser keeps: the browser holds the text, this server alone holds the key.

Fernet (AES-CBC with HMAC-SHA256), so that a change or another secret is noticed. Gradio's own BrowserState hands its
secret to every visitor, and takes what it cannot read for nothing and overwrites it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from medchat.files import cache_dir

LARGEST = 8_000_000  # characters of one conversation, unpacked

log = logging.getLogger("medchat")


@dataclass(frozen=True)
class Seal:
    """The key, and whether it will be the same after a restart of this server."""

    key: Fernet = field(repr=False)
    lasting: bool = True


def open_seal(secret: str | None = None, *, on_space: bool = False) -> Seal:
    """Return the seal made of `secret`; without one, of a random secret kept in the cache folder (mode 0600).

    That one lasts where the folder does: not on a Space, and not where it cannot be written, as the log says then.
    """
    own, lasting = (secret, True) if secret else _own_secret()
    salt = b"medchat conversations"  # one key for the whole server, so there is nothing to tell apart with a salt
    key = hashlib.scrypt(own.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
    return Seal(Fernet(base64.urlsafe_b64encode(key)), bool(secret) or (lasting and not on_space))


def sealed(seal: Seal, body: dict[str, Any]) -> str:
    """Return `body` as JSON, packed and encrypted, in letters that browser storage takes."""
    return seal.key.encrypt(zlib.compress(json.dumps(body, ensure_ascii=False).encode(), 9)).decode()


def unsealed(seal: Seal, token: object) -> dict[str, Any] | None:
    """Return what was sealed; None for what this secret did not seal, whatever it is."""
    try:
        packed = seal.key.decrypt(token if isinstance(token, str) else "")
        body = json.loads(zlib.decompressobj().decompress(packed, LARGEST))
    except (InvalidToken, ValueError, zlib.error):
        return None
    return body if isinstance(body, dict) else None


def _own_secret() -> tuple[str, bool]:
    """Return the secret in the cache folder, made at the first start, and whether it could be kept there."""
    file = cache_dir() / "secret"
    made = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(made)
    except FileExistsError:
        pass
    except OSError as error:
        log.warning("Conversations will not outlast this process: no secret can be kept in %s (%s).", file, error)
        return made, False
    try:
        kept = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        log.warning("Conversations will not outlast this process: %s cannot be read (%s).", file, error)
        return made, False
    return kept or made, bool(kept)
