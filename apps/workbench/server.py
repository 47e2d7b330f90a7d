"""The application: dash on flask, the pages, and the guard around both."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Iterable
from typing import Any

import dash
from dash import html
from dash.exceptions import DependencyException
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

from apps.workbench import exports
from apps.workbench.bench import Bench
from apps.workbench.guard import LOOPBACK, MAX_BODY, Guard, content_policy, split_host
from apps.workbench.shell import shell
from apps.workbench.tell import tell

LOG = logging.getLogger("interp.workbench")

INDEX = """<!DOCTYPE html>
<html lang="en">
    <head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}</head>
    <body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def make_app(
    bench: Bench,
    *,
    prefix: str = "/",
    hosts: Iterable[str] = (),
    token: str | None = None,
    cookie: str = "interp",
) -> Guard:
    """The whole application as one guarded WSGI callable; ``.dash`` is the app inside.

    Args:
        bench: the store, the queue and the model roots.
        prefix: path it is served under, with slashes at both ends.
        hosts: host names beside loopback that it answers to.
        token: the shared secret, None for none.
        cookie: name of the token's cookie.
    """
    hosts = tuple(hosts)
    server = Flask("apps.workbench")
    server.config.update(
        BENCH=bench,
        PREFIX=prefix,
        MAX_CONTENT_LENGTH=MAX_BODY,
        PROPAGATE_EXCEPTIONS=False,
        TRUSTED_HOSTS=[*LOOPBACK, *(split_host(h)[0] for h in hosts)],
    )
    app = dash.Dash(
        "apps.workbench",
        server=server,
        use_pages=True,
        url_base_pathname=prefix,
        suppress_callback_exceptions=True,
        include_pages_meta=False,
        serve_locally=True,
        title="interp",
        update_title="",
        index_string=INDEX,
        on_error=show_error,
        enable_mcp=False,
        add_log_handler=False,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = lambda: shell(prefix)
    exports.add_routes(server, prefix)
    server.register_error_handler(Exception, plain_error)
    guard = Guard(server, hosts=hosts, token=token, prefix=prefix, cookie=cookie)
    guard.dash = app
    with server.test_client() as client:
        client.get(prefix, base_url="http://localhost")
    guard.policy = content_policy(app.csp_hashes())
    return guard


def plain_error(error: Exception) -> Response:
    """One sentence for the browser; the traceback stays in the log."""
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
        return Response(f"{error.code} {error.name}", error.code, mimetype="text/plain")
    if isinstance(error, DependencyException):  # a script that is not one of the components'
        return Response("404 Not Found", 404, mimetype="text/plain")
    reference = secrets.token_hex(4)
    LOG.error("request failed (reference %s)", reference, exc_info=error)
    if request.path.endswith("/_dash-update-component"):
        sentence = "This request does not fit the page; load the page again"
        return Response(f"{sentence} (reference {reference}).", 400, mimetype="text/plain")
    sentence = f"Something went wrong here (reference {reference}); the log has the details."
    return Response(sentence, 500, mimetype="text/plain")


def show_error(error: Exception) -> Any:
    """What a callback's failure looks like: a notice on the page, nothing else changes."""
    dash.set_props("notices", {"children": html.Div(tell(error), className="toast", role="alert")})
    return dash.no_update


class Quiet(WSGIRequestHandler):
    """A request handler that names no versions and logs no addresses."""

    server_version = "interp"  # pyright: ignore[reportAssignmentType]
    sys_version = ""

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Requests go to the debug log."""
        LOG.debug("%s %s", code, getattr(self, "path", ""))


def serve(app: Guard, host: str, port: int) -> Any:
    """A threaded server that is ready to ``serve_forever``; port 0 takes a free one.

    The address is taken here: werkzeug would print its own words and end the process.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=128) as held:
        taken = held.getsockname()[1]
        server = make_server(
            host, taken, app, threaded=True, request_handler=Quiet, fd=held.fileno()
        )
    server.server_name, server.server_port = host, taken
    return server
