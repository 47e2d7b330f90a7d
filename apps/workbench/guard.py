"""One guard around every route: who may ask, from where, how much, and what leaves with the answer.

Rules (docs/security.md): the Host must be loopback or named with ``--allow-host``; anything but GET
and HEAD must come from the page itself; a token, where one is set, turns into a cookie once; a
large body is refused before it is read; every answer carries the security headers; an error that
nobody caught leaves as one sentence with a reference, and its traceback stays in the log.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import logging
import secrets
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

LOG = logging.getLogger("interp.workbench")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_BODY = 16 * 2**20
"""Largest request body in bytes: a 10 MB JSONL file in base64, and room for the rest."""
TOKEN_BITS = 128

Start = Callable[..., Any]


def content_policy(hashes: Iterable[str]) -> str:
    """The content security policy, with the hashes of the page's own inline scripts."""
    return (
        f"default-src 'self'; script-src 'self' {' '.join(hashes)}; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def split_host(host: str) -> tuple[str, str]:
    """A Host header as (name in lower case, port or the empty text)."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or port.endswith("]") or not port.isdigit():
        return host.strip().lower(), ""
    return name, port


def plain_host(host: str) -> str:
    """An accepted Host as flask's own list can read it, which knows no IPv6 and no capitals."""
    name, port = split_host(host)
    name = "localhost" if name == "[::1]" else name
    return f"{name}:{port}" if port else name


class Guard:
    """WSGI middleware with the rules of the module.

    Args:
        app: the application inside.
        hosts: names beside loopback that may stand in the Host header (``--allow-host``).
        token: the shared secret, or None where none is wanted.
        prefix: path the app is served under, with slashes at both ends.
        cookie: name of the cookie (one a port, since cookies know no ports).
        max_body: bytes.
    """

    def __init__(
        self,
        app: Start,
        *,
        hosts: Iterable[str] = (),
        token: str | None = None,
        prefix: str = "/",
        cookie: str = "interp",
        max_body: int = MAX_BODY,
    ) -> None:
        self.app = app
        self.hosts = tuple(h.strip().lower() for h in hosts if h.strip())
        self.token = token
        self.prefix = prefix
        self.cookie = cookie
        self.max_body = max_body
        self.policy = content_policy(())
        self.dash: Any = None  # the app inside, for whoever starts or tests it

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answer, or refuse with one plain sentence."""
        refused = self.refusal(environ)
        if refused is None and self.token is not None:
            refused = self.entrance(environ)
        if refused is not None:
            return self.answer(start, *refused)
        environ["HTTP_HOST"] = plain_host(environ.get("HTTP_HOST", ""))
        headed = self.with_headers(start)
        try:
            return self.app(environ, headed)
        except Exception:
            reference = secrets.token_hex(4)
            LOG.exception("request failed (reference %s)", reference)
            return self.answer(
                start,
                "500 Internal Server Error",
                f"Something went wrong here (reference {reference}); the log has the details.",
            )

    def refusal(self, environ: dict[str, Any]) -> tuple[str, str] | None:
        """Why this request is not let in, as (status, sentence); None where it is."""
        host = environ.get("HTTP_HOST", "")
        if not self.known_host(host):
            return "400 Bad Request", "This workbench does not answer to that host name."
        method = environ.get("REQUEST_METHOD", "GET")
        site = environ.get("HTTP_SEC_FETCH_SITE", "")
        origin = environ.get("HTTP_ORIGIN")
        if method not in ("GET", "HEAD"):
            foreign = origin is not None and not self.own_origin(origin, host)
            if foreign or site not in ("", "same-origin", "none"):
                return "403 Forbidden", "This request came from another site."
        elif site == "cross-site" and environ.get("HTTP_SEC_FETCH_MODE") != "navigate":
            return "403 Forbidden", "This request came from another site."
        return self.oversize(environ)

    def oversize(self, environ: dict[str, Any]) -> tuple[str, str] | None:
        """A refusal for a body that is too large or of unstated length."""
        if environ.get("HTTP_TRANSFER_ENCODING"):
            return "411 Length Required", "State the length of the body."
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit()):
            return "400 Bad Request", "The length of the body is no number."
        if len(length) > 15 or int(length) > self.max_body:
            limit = self.max_body // 2**20
            return "413 Content Too Large", f"The body is over {limit} MB; send less."
        return None

    def known_host(self, host: str) -> bool:
        """Whether a Host header names this computer's loopback or an allowed host."""
        name, port = split_host(host)
        if name in LOOPBACK:
            return True
        return any((name, port or p) == (n, p or port) for n, p in map(split_host, self.hosts))

    def own_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header is the page itself, or an allowed host at its usual port."""
        try:
            parts = urlsplit(origin)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return False
        if parts.netloc.lower() == host.strip().lower():
            return True
        for name, allowed in map(split_host, self.hosts):
            if (parts.hostname or "") == name and str(port or "") == allowed:
                return True
        return False

    def entrance(self, environ: dict[str, Any]) -> tuple[Any, ...] | None:
        """None where the cookie is good; else the page that sets it, or the 401."""
        assert self.token is not None
        wanted = hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()
        try:
            jar = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        except CookieError:
            jar = SimpleCookie()
        held = jar[self.cookie].value if self.cookie in jar else ""
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and hmac.compare_digest(given.encode(), self.token.encode()):
            rest = urlencode([(k, v) for k, v in query if k != "token"])
            path = environ.get("PATH_INFO", "/").replace("\\", "/")
            target = "/" + path.lstrip("/") + (f"?{rest}" if rest else "")
            page = (
                "<!doctype html><meta charset=utf-8><title>interp</title>"
                f'<meta http-equiv="refresh" content="0;url={html.escape(target, quote=True)}">'
            )
            flags = "HttpOnly; SameSite=Strict"
            cookie = ("Set-Cookie", f"{self.cookie}={wanted}; Path={self.prefix}; {flags}")
            return "200 OK", page, "text/html; charset=utf-8", [cookie]
        if hmac.compare_digest(held.encode(), wanted.encode()):
            return None
        return (
            "401 Unauthorized",
            "This workbench asks for its token: open the link that was printed when it started.",
        )

    def headers(self) -> list[tuple[str, str]]:
        """What every answer carries."""
        return [
            ("Content-Security-Policy", self.policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ]

    def with_headers(self, start: Start) -> Start:
        """``start_response`` with the headers added, replacing equal ones."""
        own = self.headers()
        names = {name.lower() for name, _ in own} | {"server", "access-control-allow-origin"}

        def headed(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(k, v) for k, v in headers if k.lower() not in names]
            return start(status, kept + own, *rest)

        return headed

    def answer(
        self,
        start: Start,
        status: str,
        text: str,
        kind: str = "text/plain; charset=utf-8",
        extra: Iterable[tuple[str, str]] = (),
    ) -> list[bytes]:
        """A small answer of the guard's own."""
        body = text.encode()
        head = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start(status, [*head, ("Cache-Control", "no-store"), *extra, *self.headers()])
        return [body]
