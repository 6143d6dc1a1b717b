"""One server over HTTP: its address, what is sent there, and what keeps a reply from being used."""

import asyncio
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from evalkit.errors import BadInput

KEY_VARIABLES = ("EVALKIT_API_KEY", "OPENAI_API_KEY")
LARGEST_REPLY_BYTES = 16 * 2**20
"""Of a reply, unpacked: an answer of 50,000 tokens with log-probabilities has less. Reading JSON takes up to some 53
times as much memory (32 MiB of empty lists: 1.7 GiB)."""
_LARGEST_ERROR_BYTES = 2**16
"""Of an error reply that is read as JSON; longer ones are somebody's page."""
_CONNECT_SECONDS = 10.0
_PASSING_STATUS = (404, 408, 409, 425, 429)
"""Errors of a request that may be gone on another attempt, besides all from 500 on. (404: a gateway whose server is
just starting again; the path itself was tried before the run.)"""
_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_MESSAGE = 300
_PLACEHOLDER_LENGTH = 8
"""Shorter keys are no secrets but words ("EMPTY", "none") that an answer may hold."""


class Trouble(Exception):
    """A request that got no reply that can be used."""

    def __init__(
        self,
        message: str,
        *,
        passing: bool = True,
        silent: bool = False,
        late: bool = False,
        status: int | None = None,
        wait: float | None = None,
    ) -> None:
        """Say what happened.

        Args:
            message: without credentials.
            passing: another attempt may not meet it.
            silent: nobody answered at all.
            late: nor will they soon: the time was up.
            status: of HTTP, where there was an answer that says it is an error.
            wait: seconds after which the server asks to be tried again.
        """
        super().__init__(message)
        self.passing, self.silent, self.late, self.status, self.wait = passing, silent, late, status, wait


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, with the credentials kept apart."""

    root: str
    """What /models and /completions are below, without credentials; "/v1" where no path was given."""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> "ServerAddress":
        """Read an address as it is typed.

        Raises:
            BadInput: it is none. Whatever may be a password is left out of the message.
        """
        try:
            parts = urlsplit(text)
            (parts.hostname or "").encode("idna")
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port that is no number, a bracket that is not closed, a name that no host can have
            sound = False
        # What could hide where the password ends from whoever masks it later.
        if not sound or "@" in parts.path or not text.isprintable() or any(mark in text for mark in " \"'\\?#"):
            shown = re.split(r"[?#]", text.rpartition("@")[2])[0]
            raise BadInput(
                f"{shown!r} is not a server's address; give one like http://localhost:8000/v1, "
                "without a query (and write marks in a password as %40 and so on)."
            )
        host = parts.netloc.rpartition("@")[2]
        return cls(
            f"{parts.scheme}://{host}{parts.path.rstrip('/') or '/v1'}",
            unquote(parts.username or ""),
            unquote(parts.password or ""),
        )


class Connection:
    """The way to one server. A reply counts only when all of it is there within the timeout."""

    def __init__(self, address: ServerAddress, *, key: str | None, timeout_seconds: float) -> None:
        """Open nothing yet.

        Args:
            address: of the server.
            key: the API key, None for none; user and password of the address go before it.
            timeout_seconds: of one request, from connecting to the last byte.
        """
        import httpx2

        self.address, self.timeout_seconds = address, timeout_seconds
        self.in_flight = 0
        """Requests that are on their way."""
        self._secrets = _secrets(address, key)
        self._client = httpx2.AsyncClient(
            auth=(address.user, address.password) if address.user or address.password else None,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=True,
        )

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Return the body of a reply.

        Args:
            path: below the address's root, or a whole URL.
            body: sent as JSON by POST; None asks by GET.

        Raises:
            Trouble: there is no reply, not a whole one, one of endless length, or one that says it is an error.
        """
        import httpx2

        url = path if "://" in path else self.address.root + path
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.timeout_seconds):
                async with self._client.stream("GET" if body is None else "POST", url, json=body) as response:
                    content = await _read(response)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise Trouble(f"no answer within {self.timeout_seconds:g} s", silent=True, late=True) from error
        except httpx2.DecodingError as error:
            raise Trouble("an answer that is not packed as it says") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            said = self.first_line(str(error) or type(error).__name__)
            raise Trouble(f"connection lost ({said})", silent=True) from error
        finally:
            self.in_flight -= 1
        if response.is_success:
            return self._masked(content)
        status, said = response.status_code, self.first_line(_message(content) or response.reason_phrase)
        raise Trouble(
            f"HTTP {status}: {said}" if said else f"HTTP {status}",
            passing=status in _PASSING_STATUS or status >= 500,
            status=status,
            wait=_asked_to_wait(response.headers),
        )

    def first_line(self, text: str) -> str:
        """Return the first line of what was said: without credentials, without what moves a terminal, and not long."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        line = (text.strip().splitlines() or [""])[0]
        return "".join(mark if mark.isprintable() else " " for mark in line)[:_LONGEST_MESSAGE].rstrip(".")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _masked(self, content: bytes) -> bytes:
        for secret in self._secrets:
            if len(secret) >= _PLACEHOLDER_LENGTH:
                content = content.replace(secret.encode(), b"***")
        return content


def api_key() -> str | None:
    """Return the API key of the environment, None where there is none.

    Raises:
        BadInput: it cannot be sent.
    """
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise BadInput(f"{name} holds marks that no API key has; set it again (plain letters, digits, signs).")
            return key
    return None


async def _read(response: Any) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > LARGEST_REPLY_BYTES:
            raise Trouble(f"an answer of more than {LARGEST_REPLY_BYTES // 2**20} MiB")
    return bytes(content)


def _message(content: bytes) -> str:
    """Return what an error reply says: the message in its JSON, else all of it."""
    from pydantic_core import from_json

    text = content[:_LARGEST_ERROR_BYTES].decode("utf-8", "replace")
    try:
        said = from_json(content) if len(content) <= _LARGEST_ERROR_BYTES else text
    except ValueError:
        return text
    while isinstance(said, dict) and (
        inner := next((said[k] for k in ("error", "message", "detail") if said.get(k)), "")
    ):
        said = inner
    return said if isinstance(said, str) else text


def _secrets(address: ServerAddress, key: str | None) -> list[str]:
    """Return all that must not be shown, in each form in which a server may repeat it, longest first."""
    pair = f"{address.user}:{address.password}"
    plain = [key or "", address.password or address.user]
    forms = {*plain, *map(quote, plain), *(quote(secret, safe="") for secret in plain)}
    if address.password:
        forms |= {pair, b64encode(pair.encode()).decode()}
    return sorted(forms - {""}, key=len, reverse=True)


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in a Retry-After header, at most a minute; None without one (or where it holds a date)."""
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return min(seconds, _LONGEST_WAIT_SECONDS) if seconds >= 0 else None  # NaN is not
