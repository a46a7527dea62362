"""The owner of this machine: the person who opened the address printed by the app, which contains a random key.

Addresses cannot prove ownership. Behind a reverse proxy on the same machine every visitor looks local: the peer address
is loopback, and by default nginx sends a loopback Host and no forwarding header. Opening the address with the key sets
a cookie that scripts cannot read and other sites cannot send, like Jupyter's token.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

FILE = ".owner-key"
KEY = re.compile(r"[\w-]{43}")  # secrets.token_urlsafe(32)
COOKIE_S = 30 * 24 * 3600


class Owner:
    """The owner's key and cookie.

    key: 43 URL-safe characters. `cookie_name` contains a digest of the key, because all ports of a host share their
    cookies, and two apps with different keys must not overwrite each other's.
    """

    def __init__(self, key: str):
        self.key = key
        self.cookie_name = "dp_owner_" + hashlib.sha256(key.encode()).hexdigest()[:8]
        self._cookie = hmac.new(key.encode(), b"owner cookie", hashlib.sha256).hexdigest()

    @classmethod
    def from_home(cls, home: Path) -> Owner:
        """Return the owner with the key stored in `home`. If there is none, store a new one; if that fails, the key
        lasts as long as the process.
        """
        return cls(_read_key(home / FILE) or _write_key(home / FILE))

    def accepts_key(self, key: str) -> bool:
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.key.encode())

    def accepts_cookies(self, header: str) -> bool:
        """Return whether a Cookie header contains the owner's cookie."""
        pairs = (pair.strip().partition("=") for pair in header.split(";"))
        values = [value for name, _, value in pairs if name == self.cookie_name]
        return any(hmac.compare_digest(value.encode("utf-8", "replace"), self._cookie.encode()) for value in values)

    def set_cookie(self, is_https: bool) -> str:
        """Return the value of the Set-Cookie header."""
        cookie = f"{self.cookie_name}={self._cookie}; Path=/; Max-Age={COOKIE_S}; HttpOnly; SameSite=Strict"
        return cookie + "; Secure" if is_https else cookie


def _read_key(file: Path) -> str | None:
    """Return the key in `file`, or None if there is none or other users of this machine could read it."""
    try:
        is_private = os.name != "posix" or not stat.S_IMODE(file.stat().st_mode) & 0o077
        key = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return key if is_private and KEY.fullmatch(key) else None


def _write_key(file: Path) -> str:
    """Return a new key, stored in `file` if possible."""
    key = secrets.token_urlsafe(32)
    temporary = file.with_name(f"{FILE}-{secrets.token_hex(4)}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as opened:
            opened.write(key + "\n")
        temporary.replace(file)
    return key
