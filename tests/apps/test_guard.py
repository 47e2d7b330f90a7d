"""The guard: every rule on every route and method, held against foreign hosts and origins."""

from __future__ import annotations

import itertools

import pytest
from werkzeug.test import Client

from apps.workbench.bench import Bench
from apps.workbench.guard import MAX_BODY, Guard
from apps.workbench.server import make_app
from interp.store import Store
from tests.apps.fakes import FakeQueue, record

HOME = {"Host": "127.0.0.1:8050"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    store.add(record())
    return Bench(store, queue=FakeQueue(store))


@pytest.fixture(scope="module")
def app(bench):
    return make_app(bench)


@pytest.fixture
def client(app):
    return Client(app)


def routes(app: Guard) -> list[str]:
    """A path for every rule of the URL map, and some that lead nowhere."""
    rules = app.dash.server.url_map.iter_rules()
    paths = [
        r.rule.replace("<path:path>", "x/y")
        .replace("<path:filename>", "workbench.css")
        .replace("<name>", "0" * 32 + ".csv")
        .replace("<string:package_name>", "dash")
        .replace("<path:fingerprinted_path>", "x.js")
        for r in rules
    ]
    return sorted({*paths, "/nowhere", "/assets/../server.py", "//", "/_dash-update-component"})


def test_a_foreign_host_gets_400_on_every_route_with_every_method(app, client):
    foreign = (
        "evil.example",
        "evil.example:8050",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "[::1].evil",
        "",
        "127.0.0.1@evil.example",
        "0.0.0.0:8050",
    )
    for path, method, host in itertools.product(routes(app), METHODS, foreign):
        got = client.open(path, method=method, headers={"Host": host})
        assert got.status_code == 400, (path, method, host, got.status_code)
        assert b"<" not in got.data


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8050", "127.0.0.1", "[::1]:8050", "LOCALHOST:1"]
)
def test_loopback_in_all_its_spellings_is_let_in(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "https://127.0.0.1:8050.evil.example",
        "file://",
        "",
        "http://localhost:8050",
        "http://127.0.0.1:8050@evil.example",
    ],
)
def test_a_foreign_origin_gets_403_beyond_get(app, client, origin):
    for path, method in itertools.product(routes(app), METHODS[2:]):
        got = client.open(path, method=method, headers={**HOME, "Origin": origin}, data=b"{}")
        assert got.status_code == 403, (path, method, origin)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_that_the_browser_calls_foreign_gets_403(client, site):
    headers = {**HOME, "Sec-Fetch-Site": site}
    assert client.post("/_dash-update-component", headers=headers).status_code == 403


def test_another_page_may_link_here_but_not_read_from_here(client):
    headers = {**HOME, "Sec-Fetch-Site": "cross-site"}
    assert client.get("/", headers={**headers, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert (
        client.get("/_dash-layout", headers={**headers, "Sec-Fetch-Mode": "cors"}).status_code
        == 403
    )


def test_the_page_itself_is_let_in(client):
    headers = {**HOME, "Origin": "http://127.0.0.1:8050", "Sec-Fetch-Site": "same-origin"}
    got = client.post("/_dash-update-component", headers=headers, json={})
    assert got.status_code == 400 and b"does not fit the page" in got.data


def test_every_answer_carries_the_security_headers_and_none_opens_it_to_others(app, client):
    for path in (*routes(app), "/export/x"):
        for host in ("127.0.0.1:8050", "evil.example"):
            with client.get(path, headers={"Host": host}) as got:
                head = got.headers
            assert got.status_code < 500
            policy = head["Content-Security-Policy"]
            assert "default-src 'self'" in policy and "object-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
            script = next(p for p in policy.split("; ") if p.startswith("script-src"))
            assert "unsafe" not in script and "*" not in script
            assert head["X-Content-Type-Options"] == "nosniff"
            assert head["Referrer-Policy"] == "no-referrer"
            assert "Access-Control-Allow-Origin" not in head
            assert "Werkzeug" not in head.get("Server", "")


def test_the_inline_scripts_of_the_page_are_the_ones_the_policy_names(client):
    import base64
    import hashlib
    import re

    got = client.get("/", headers=HOME)
    scripts = re.findall(r"<script(?![^>]*src=)([^>]*)>(.*?)</script>", got.text, re.DOTALL)
    inline = [body for tag, body in scripts if "application/json" not in tag]
    assert inline
    for body in inline:
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in got.headers["Content-Security-Policy"]


def test_nothing_on_the_page_comes_from_elsewhere(client):
    import re

    page = client.get("/", headers=HOME).text
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page)


@pytest.mark.parametrize("length", [str(MAX_BODY + 1), "9" * 30])
def test_a_large_body_gets_413_before_it_is_read(client, length):
    environ = {"REQUEST_METHOD": "POST", "HTTP_HOST": HOME["Host"], "CONTENT_LENGTH": length}
    assert client.application.refusal(environ)[0].startswith("413")
    said = []
    body = client.application(environ, lambda status, headers: said.append(status))
    assert said[0].startswith("413") and b"16 MB" in b"".join(body)


def test_a_body_of_unstated_length_is_refused(client):
    got = client.post("/_dash-update-component", headers={**HOME, "Transfer-Encoding": "chunked"})
    assert got.status_code == 411


def test_a_token_turns_into_a_cookie_once_and_is_asked_for_everywhere(bench):
    token = "correct-horse-battery-staple"
    app = make_app(bench, token=token, cookie="interp_8050")
    for path in routes(app):
        assert Client(app).get(path, headers=HOME).status_code == 401
    assert Client(app).get("/?token=wrong", headers=HOME).status_code == 401
    client = Client(app)
    got = client.get(f"/runs?token={token}&tag=a%22b", headers=HOME)
    cookie = got.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and token not in cookie
    assert token not in got.text and "url=/runs?tag=a%22b" in got.text
    value = cookie.partition(";")[0]
    bare = Client(app, use_cookies=False)
    assert bare.get("/", headers={**HOME, "Cookie": value}).status_code == 200
    assert bare.get("/", headers={**HOME, "Cookie": value + "0"}).status_code == 401


def test_the_entrance_with_a_token_leads_to_no_other_host(bench):
    app = make_app(bench, token="correct-horse-battery-staple")
    got = Client(app).get("//evil.example/?token=correct-horse-battery-staple", headers=HOME)
    assert "url=//" not in got.text


def test_an_allowed_host_is_let_in_and_its_neighbours_are_not(bench):
    client = Client(make_app(bench, hosts=["hub.example:8443"]))
    assert client.get("/", headers={"Host": "hub.example:8443"}).status_code == 200
    assert client.get("/", headers={"Host": "hub.example:81"}).status_code == 400
    assert client.get("/", headers={"Host": "x.hub.example"}).status_code == 400
    headers = {"Host": "hub.example:8443", "Origin": "https://hub.example:8443"}
    assert client.post("/_dash-update-component", headers=headers, json={}).status_code == 400
    headers["Origin"] = "https://hub.example:9"
    assert client.post("/_dash-update-component", headers=headers).status_code == 403


def test_a_prefix_serves_everything_below_it(bench):
    client = Client(make_app(bench, prefix="/user/me/"))
    got = client.get("/user/me/", headers=HOME)
    assert got.status_code == 200 and 'src="/user/me/_dash-component-suites' in got.text
    assert client.get("/runs", headers=HOME).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"output": "x.y"}',
        b'{"output": []}',
        b'{"output":"notices.children","inputs":7}',
        b"\x00\xff",
    ],
)
def test_a_malformed_callback_is_told_so_and_tells_nothing(client, body):
    got = client.post(
        "/_dash-update-component", headers=HOME, data=body, content_type="application/json"
    )
    assert 400 <= got.status_code < 500
    for secret in (b"Traceback", b"/", b"File", b"Error"):
        assert secret not in got.data


def test_a_failure_of_ours_shows_a_reference_and_no_trace(bench, caplog):
    app = make_app(bench)

    def broken():
        raise RuntimeError("secret /etc/path")

    app.dash.server.view_functions["export"] = lambda name: broken()
    got = Client(app).get("/export/x", headers=HOME)
    assert got.status_code == 500 and "reference" in got.text
    assert "secret" not in got.text and "Traceback" not in got.text and "/" not in got.text
    assert "secret /etc/path" in caplog.text


TRAVERSALS = (
    "..%2f..%2fetc%2fpasswd",
    "../../etc/passwd",
    "//etc/passwd",
    "%2e%2e/%2e%2e/x",
    "%252e%252e%252fx",
    "..\\..\\x",
    "x;.csv",
    "x%00.csv",
    "C:\\x.csv",
    "..",
    "0" * 32 + ".py%00",
    "0" * 32 + "/../x.csv",
    "0" * 32 + ".exe",
)


@pytest.mark.parametrize("name", TRAVERSALS)
def test_an_export_is_an_id_and_a_kind_and_nothing_else(client, name):
    got = client.get(f"/export/{name}", headers=HOME)
    assert b"root:" not in got.data
    assert got.status_code in (400, 404) or b"react-entry-point" in got.data


@pytest.mark.parametrize("name", TRAVERSALS)
def test_assets_stay_in_their_folder(client, name):
    got = client.get(f"/assets/{name}", headers=HOME)
    assert b"root:" not in got.data and b"def make_app" not in got.data
    assert got.status_code in (400, 404) or b"react-entry-point" in got.data


@pytest.mark.parametrize("kind", ["csv", "json", "nc", "ipynb", "py"])
def test_a_run_is_exported_as_a_download(client, bench, kind):
    run = bench.store.list()[0].id
    got = client.get(f"/export/{run}.{kind}", headers=HOME)
    assert got.status_code == 200 and len(got.data) > 100
    assert got.headers["Content-Disposition"].startswith("attachment; filename=")
    assert kind != "csv" or got.text.startswith("variable,")


def test_debug_tools_and_mcp_are_off(app, client):
    assert not app.dash.server.debug
    for path in ("/_mcp", "/mcp", "/_dash-debug"):
        assert (
            b"react-entry-point" in client.get(path, headers=HOME).data
            or client.get(path, headers=HOME).status_code == 404
        )
