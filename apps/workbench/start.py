"""Start the workbench: find or start the worker, submit the first grid, serve, say where."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import secrets
import signal
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import interp
from apps.workbench.bench import Bench
from apps.workbench.guard import TOKEN_BITS
from apps.workbench.server import make_app, serve

LOG = logging.getLogger("interp.workbench")
PORT = 8050


class OptionError(interp.InterpError):
    """An option whose value does not fit."""

    exit_code = 2


def parser() -> argparse.ArgumentParser:
    """The options; ``interp app`` takes the same."""
    p = argparse.ArgumentParser(prog="interp app", description="The workbench in a browser.")
    p.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback)")
    p.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT}; 0 takes a free)")
    p.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="DIR",
        type=Path,
        help="a folder whose model folders are offered; may be given again",
    )
    p.add_argument(
        "--token",
        nargs="?",
        const="",
        default=None,
        help="ask for a token; without a value one is made and printed once",
    )
    p.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further host name to answer to, behind a proxy; may be given again",
    )
    p.add_argument("--prefix", default="/", help="path to serve under, as /workbench/")
    p.add_argument(
        "--store",
        type=Path,
        default=None,
        metavar="DIR",
        help="where runs are kept (default: $INTERP_HOME or ~/.local/share/interp)",
    )
    p.add_argument("--no-browser", action="store_true", help="do not open a browser")
    p.add_argument(
        "--no-worker",
        action="store_true",
        help="do not start a worker (one is already running on this store)",
    )
    return p


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this computer only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def chosen_token(given: str | None, host: str) -> str | None:
    """The token to ask for: the given one, a fresh one, or none on loopback.

    Raises:
        OptionError: a given token that could be guessed.
    """
    if given is None and is_loopback(host):
        return None
    if not given:
        return secrets.token_urlsafe(TOKEN_BITS // 8)
    if len(given) < TOKEN_BITS // 6 or not given.isascii() or not given.isprintable():
        raise OptionError(
            f"The token has {len(given)} characters; wanted at least {TOKEN_BITS // 6}, "
            "so that nobody guesses it.",
            remedy="Give --token without a value and one is made.",
        )
    return given


def clean_prefix(text: str) -> str:
    """A path prefix with one slash at each end.

    Raises:
        OptionError: characters that do not belong into a path.
    """
    parts = [p for p in text.strip().split("/") if p]
    if any(not all(c.isalnum() or c in "-_.~@" for c in p) or set(p) == {"."} for p in parts):
        raise OptionError(f"The prefix {text!r} is no path.", remedy="Write it as /workbench/.")
    return "/" + "".join(f"{p}/" for p in parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workbench until it is interrupted; the exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run(options)
    except interp.InterpError as error:
        sys.stderr.write(f"interp app: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(
            f"interp app: cannot serve on {options.host}:{options.port}: "
            f"{error.strerror}. Try --port 0 for a free one.\n"
        )
        return 1
    except KeyboardInterrupt:
        return 130


def run(options: argparse.Namespace) -> int:
    """Start, serve, stop."""
    token = chosen_token(options.token, options.host)
    prefix = clean_prefix(options.prefix)
    hosts = list(options.allow_host)
    if not is_loopback(options.host) and options.host not in ("0.0.0.0", "::"):
        hosts.append(options.host)
    bench = Bench(interp.Store(options.store), roots=tuple(options.models))
    signal.signal(signal.SIGTERM, stopped)
    app = make_app(bench, prefix=prefix, hosts=hosts, token=token, cookie=f"interp_{options.port}")
    server = serve(app, options.host, options.port)
    try:
        if not options.no_worker:
            bench.start_worker()
        bench.welcome()
        say_where(options, server.server_port, prefix, token)
        server.serve_forever()
    finally:
        server.server_close()
        bench.stop()
    return 0


def stopped(*_: object) -> None:
    """End as Ctrl-C does, so that the worker goes too."""
    raise KeyboardInterrupt


def say_where(options: argparse.Namespace, port: int, prefix: str, token: str | None) -> None:
    """Print the address, and open a browser where there is a display."""
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::", "localhost") else options.host
    address = f"http://{host}:{port}{prefix}" + (f"?token={token}" if token else "")
    sys.stdout.write(f"interp workbench: {address}\n")
    sys.stdout.write("The models stay in a worker process; stop with Ctrl-C.\n")
    sys.stdout.flush()
    shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not options.no_browser and (shown or sys.platform in ("darwin", "win32")):
        threading.Timer(0.3, webbrowser.open, [address]).start()
