"""The gateway: rules for host names, limits of bodies and the owner's key. Then the real app, called by API clients, by
pages of other sites in Chromium, and through a proxy that makes every visitor look local.
"""

from __future__ import annotations

import http.client
import json
import os
import stat
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import pytest
from gradio_client import Client
from launching import launched
from pages import context_for, owners, owners_cookie, set_run, until
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from test_prepare import png
from test_train_tab import open_train_tab, sooner_or_later

from dp.training.run_folder import list_runs
from dp.ui import server
from dp.ui.auth import gateway
from dp.ui.auth.gateway import BODY_BYTES, OWNER, UPLOAD_BYTES, Gateway
from dp.ui.auth.origins import Access
from dp.ui.auth.owner import FILE, Owner

LOCAL = Access()
SERVER = Access.from_environment("0.0.0.0", ["photos.lan"], ["https://blog.test"], {})
SPACE = Access.from_environment(None, [], [], {"SPACE_ID": "a/b", "SPACE_HOST": "a-b.hf.space,dp.example.com"})


def accepts(access, method="GET", path="/config", **headers):
    pairs = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    return access.rejection_reason(method, path, Headers(raw=pairs)) is None


@pytest.mark.parametrize(
    "access, host, is_known",
    [
        *[(LOCAL, host, True) for host in ("localhost", "LOCALHOST:7860", "127.0.0.1:1", "127.9.9.9", "[::1]:7860")],
        *[
            (LOCAL, host, False)
            for host in ("evil.test", "localhost.evil.test", "192.168.1.5:7860", "", "[::1", "0.0.0.0")
        ],
        *[
            (SERVER, host, True)
            for host in ("192.168.1.5:7860", "[fe80::1]", "photos.lan", "Photos.LAN.:7860", "localhost")
        ],
        *[(SERVER, host, False) for host in ("evil.test", "sub.photos.lan", "blog.test", "photos.lan@evil.test")],
        (SPACE, "anything.test", True),
        (Access.from_environment("studio.lan", [], [], {}), "studio.lan:7860", True),
        (Access.from_environment(None, ["one.test:8443"], [], {}), "one.test:8443", True),
        (Access.from_environment(None, ["one.test:8443"], [], {}), "one.test", False),
        (Access.from_environment(None, [], [], {"DP_ALLOWED_HOSTS": "one.test, https://two.test"}), "two.test", True),
        (Access.from_environment(None, [], [], {"GRADIO_SERVER_NAME": "0.0.0.0"}), "10.0.0.1", True),
    ],
)
def test_a_server_answers_only_to_its_own_names(access, host, is_known):
    assert accepts(access, host=host) is is_known


def test_forwarded_host_headers_are_ignored():
    assert not accepts(LOCAL, host="evil.test", x_forwarded_host="localhost")
    assert accepts(LOCAL, host="localhost", x_forwarded_host="evil.test")
    two = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.test")])
    assert "more than one Host" in LOCAL.rejection_reason("GET", "/", two)


@pytest.mark.parametrize(
    "access, host, origin, may",
    [
        (LOCAL, "127.0.0.1:7860", "http://127.0.0.1:7860", True),
        (LOCAL, "127.0.0.1:7860", "https://127.0.0.1:7860", True),  # a proxy ends TLS
        (LOCAL, "127.0.0.1:7860", "http://127.0.0.1:7861", False),
        (LOCAL, "127.0.0.1:7860", "http://localhost:7860", False),
        (LOCAL, "127.0.0.1:7860", "http://evil.test", False),
        (LOCAL, "127.0.0.1:7860", "null", False),
        (LOCAL, "127.0.0.1:7860", "", False),
        (LOCAL, "127.0.0.1:7860", "http://127.0.0.1:7860.evil.test", False),
        (SERVER, "photos.lan", "https://photos.lan", True),
        (SERVER, "photos.lan:443", "https://photos.lan", True),
        (SERVER, "127.0.0.1:7860", "https://photos.lan", True),  # a proxy changes Host
        (SERVER, "photos.lan", "https://blog.test", True),
        (SERVER, "photos.lan", "https://blog.test.evil.test", False),
        (Access.from_environment("studio.lan", [], [], {}), "studio.lan:7860", "http://studio.lan:7860", True),
        (Access.from_environment("studio.lan", [], [], {}), "studio.lan:7860", "http://studio.lan:3000", False),
        (Access.from_environment(None, ["bücher.de"], [], {}), "127.0.0.1:7860", "https://xn--bcher-kva.de", True),
        (SPACE, "10.1.2.3:7860", "https://a-b.hf.space", True),
        (SPACE, "10.1.2.3:7860", "https://dp.example.com", True),
        (SPACE, "a-b.hf.space", "https://evil.hf.space", False),
    ],
)
def test_pages_of_other_origins_may_call_only_if_allowed(access, host, origin, may):
    for method in "GET", "POST":
        assert accepts(access, method, host=host, origin=origin) is may


@pytest.mark.parametrize(
    "method, path, site, mode, may",
    [
        ("POST", "/gradio_api/component_server", None, None, True),  # a program
        ("POST", "/gradio_api/component_server", "same-origin", "cors", True),
        ("GET", "/", "none", "navigate", True),
        ("GET", "/login/callback", "cross-site", "navigate", True),
        ("GET", "/", "same-site", "navigate", True),
        ("POST", "/login", "cross-site", "navigate", False),
        ("GET", "/config", "cross-site", "no-cors", False),
        ("GET", "/gradio_api/queue/data", "same-site", "cors", False),
        ("GET", "/assets/index.js", "cross-site", "no-cors", True),
        ("HEAD", "/gradio_api/file=/tmp/gradio/x.png", "cross-site", "no-cors", True),
        ("POST", "/assets/index.js", "cross-site", "no-cors", False),
        ("GET", "/config", "nonsense", "cors", False),
    ],
)
def test_without_an_origin_sec_fetch_site_decides(method, path, site, mode, may):
    sent = {} if site is None else {"sec_fetch_site": site, "sec_fetch_mode": mode}
    assert accepts(LOCAL, method, path, host="localhost", **sent) is may


def test_only_pages_of_this_machine_and_of_allowed_sites_may_frame_the_app():
    assert LOCAL.frame_ancestors() == "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
    assert SERVER.frame_ancestors().endswith(" blog.test:* photos.lan:*")
    assert SPACE.frame_ancestors() is None  # Hugging Face shows it in a frame


@pytest.mark.parametrize(
    "name", ["*", "*.example.com", "a b", "a;b", "https://", "example.com/path", "x:99999", "a@b", ""]
)
def test_an_invalid_name_is_a_clear_error(name):
    with pytest.raises(ValueError, match="--allowed-host or DP_ALLOWED_HOSTS takes names like"):
        Access.from_environment(None, [name], [], {})


# ----------------------------------------------------------------------------
# Bodies


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body()), "owner": request.scope[OWNER]})


@pytest.fixture
def owner(tmp_path):
    return Owner.from_home(tmp_path)


@pytest.fixture
def client(owner):
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/api", "/gradio_api/upload")]
    with TestClient(Gateway(Starlette(routes=routes), LOCAL, owner), base_url="http://localhost") as client:
        yield client


def chunks(size):
    while size > 0:
        yield b"x" * min(size, 1 << 20)
        size -= 1 << 20


@pytest.mark.parametrize("path, limit", [("/api", BODY_BYTES), ("/gradio_api/upload", UPLOAD_BYTES)])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_ends_at_its_limit_however_it_is_sent(client, path, limit, is_chunked):
    for size in limit, limit + 1:
        answer = client.post(path, content=chunks(size) if is_chunked else b"".join(chunks(size)))
        if size == limit:
            assert answer.status_code == 200 and answer.json()["bytes"] == size
        else:
            assert answer.status_code == 413
            assert answer.text == f"The request exceeds the limit of {limit >> 20} MB. Send less at a time."


def test_a_wrong_content_length_does_not_help(client):
    assert client.post("/api", content=b"x", headers={"Content-Length": "9" * 30}).status_code == 413
    late = client.post("/api", content=chunks(BODY_BYTES + 1), headers={"Content-Length": "1"})
    assert late.status_code == 413


def test_a_visitors_uploads_are_limited(client, monkeypatch):
    monkeypatch.setattr(gateway, "VISITOR_BYTES", 3 << 20)
    upload = lambda size: client.post("/gradio_api/upload", content=b"x" * size).status_code  # noqa: E731
    assert [upload(size) for size in (10, 3 << 20, 2 << 20, 1 << 20)] == [200, 429, 200, 429]
    assert client.post("/api", content=b"x").status_code == 200
    monkeypatch.setattr(gateway, "UPLOAD_TTL_S", 0)  # an hour later
    assert upload(2 << 20) == 200


def test_a_small_upload_counts_as_64_kilobytes(client, monkeypatch):
    """Otherwise requests with thousands of tiny files would not be limited."""
    monkeypatch.setattr(gateway, "VISITOR_BYTES", 3 << 16)
    assert [client.post("/gradio_api/upload", content=b"x").status_code for _ in range(4)] == [200, 200, 200, 429]


# ----------------------------------------------------------------------------
# The owner


def test_the_key_is_private_and_stays(tmp_path):
    owner = Owner.from_home(tmp_path / "new")
    file = tmp_path / "new" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Owner.from_home(tmp_path / "new").key == owner.key


@pytest.mark.parametrize(
    "damage", [lambda file: file.chmod(0o644), lambda file: file.write_bytes(b"\xff\n"), os.unlink]
)
def test_a_key_that_others_could_read_or_that_is_damaged_is_replaced(tmp_path, damage):
    old = Owner.from_home(tmp_path)
    damage(tmp_path / FILE)
    new = Owner.from_home(tmp_path)
    assert new.key != old.key and Owner.from_home(tmp_path).key == new.key
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_a_writable_folder_the_key_lasts_as_long_as_the_app(tmp_path):
    (tmp_path / "file").write_text("")
    assert Owner.from_home(tmp_path / "file").key != Owner.from_home(tmp_path / "file").key


def test_opening_the_key_makes_an_owner(client, owner):
    assert not client.get("/").json()["owner"]
    answer = client.get(f"/?steps=7&key={owner.key}&seed=", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "?steps=7&seed="
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie and owner.key not in cookie
    assert client.get("/").json()["owner"]


@pytest.mark.parametrize("key", ["", "x", "x" * 43, "\ud800", "%FF"])
def test_a_wrong_key_or_cookie_makes_no_owner(client, owner, key):
    raw = key.encode("utf-8", "surrogatepass")
    answer = client.get("/", params={"key": raw}, follow_redirects=False)
    assert answer.status_code == 200 and not answer.json()["owner"] and "set-cookie" not in answer.headers
    for header in (f"{owner.cookie_name}={owner.key}", f"{owner.cookie_name}=", "dp_owner=1", f"x={owner._cookie}"):
        assert not client.get("/", headers={"Cookie": header}).json()["owner"]


def test_addresses_neither_make_nor_deny_an_owner(client, owner):
    for name in "X-Forwarded-For", "X-Real-IP", "Forwarded":
        assert not client.get("/", headers={name: "127.0.0.1"}).json()["owner"]


def test_the_cookie_may_come_in_any_of_several_headers(client, owner):
    cookie = owner.set_cookie(False).partition(";")[0]
    assert client.get("/", headers=[("Cookie", "a=1"), ("Cookie", cookie), ("Cookie", "b=2")]).json()["owner"]


def test_two_apps_on_one_host_keep_their_cookies_apart(tmp_path):
    one, two = Owner.from_home(tmp_path / "one"), Owner.from_home(tmp_path / "two")
    assert one.cookie_name != two.cookie_name
    both = "; ".join(owner.set_cookie(False).partition(";")[0] for owner in (one, two))
    assert one.accepts_cookies(both) and two.accepts_cookies(both)
    assert "; Secure" in one.set_cookie(True) and "; Secure" not in one.set_cookie(False)


# ----------------------------------------------------------------------------
# The real app


SESSIONS = 20  # whose state Gradio keeps; fewer than in the real app, to exceed the limit sooner


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    run = home / "cats-20260101-000000-000000000000"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"name": "Secret cats", "created": 1}))
    return home


@pytest.fixture(scope="module")
def url(home):
    environment = {"DP_ALLOWED_ORIGINS": "blog.test", "DP_ALLOWED_HOSTS": "app.test", "HF_TOKEN": "hf_owner"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with launched(home, state_session_capacity=SESSIONS) as url:
            yield url


def ask(url, path, body=None, **headers):
    """Return the status and the text of a response."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=150)) as connection:
        connection.request("GET" if body is None else "POST", path, body, sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")


@pytest.fixture(scope="module")
def board(url):
    config = json.loads(ask(url, "/config")[1])
    return next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "board")


def call(board, function, data=None):
    """Return the request body that calls a server function of the board."""
    return json.dumps({"component_id": board, "fn_name": function, "session_hash": "x", "data": data or {}})


JSON = {"Content_Type": "application/json"}
TEXT = {"Content_Type": "text/plain"}  # all that a no-cors request of another site can send


def test_api_clients_need_no_extra_headers(url, board):
    status, said = ask(url, "/gradio_api/component_server", call(board, "poll"), **JSON)
    assert status == 200 and "Secret cats" in said
    client = Client(url, verbose=False)
    image, made_with = client.predict(images=1, timesteps=2, seed=3, api_name="/sample")
    assert made_with["seed"] == 3 and os.path.getsize(image)
    client.close()


def test_language_models_can_call_the_endpoints(url):
    if not os.environ.get("CI"):  # in CI the extra must be installed
        pytest.importorskip("mcp")
    to, said = "/gradio_api/mcp/", {"Accept": "application/json, text/event-stream"} | JSON
    arguments = {"images": 1, "timesteps": 2, "seed": 4}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "sample", "arguments": arguments}}
    status, answer = ask(url, to, json.dumps(call), **said)
    assert status == 200 and '"isError":false' in answer and "seed" in answer, answer
    assert ask(url, to, json.dumps(call), **said, Origin="http://evil.test")[0] == 403


def test_files_can_be_downloaded(url):
    client = Client(url, verbose=False, download_files=False)
    image, _ = client.predict(images=1, timesteps=2, seed=3, api_name="/sample")
    path = "/gradio_api/file=" + quote(image["path"])
    assert ask(url, path, Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(url, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    client.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.test"},
        {"Origin": "http://evil.test", "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    ],
)
def test_other_sites_neither_read_nor_change_anything(url, home, board, headers):
    run = next(path.name for path in home.iterdir() if path.is_dir())
    for kind in JSON, TEXT:
        for body in call(board, "poll"), call(board, "command", {"run": run, "verb": "delete"}):
            status, said = ask(url, "/gradio_api/component_server", body, **kind, **headers)
            assert status == 403 and "Secret" not in said and "--allowed-" in said
    for path in "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x":
        assert ask(url, path, **headers)[0] == 403
    assert (home / run / "config.json").exists()


def test_only_the_owner_uses_the_hub_login(url, home, board):
    run = next(path.name for path in home.iterdir() if path.is_dir())
    offer = call(board, "offer", {"run": run})
    assert json.loads(ask(url, "/gradio_api/component_server", offer, **JSON)[1])["login"] is False
    told = ask(url, "/gradio_api/component_server", offer, **JSON, Cookie=owners_cookie(url, home))[1]
    assert json.loads(told)["login"] is True


def test_large_bodies_are_rejected_on_every_route(url, board):
    large = "x" * (BODY_BYTES + 1)
    for path in (
        "/gradio_api/component_server",
        "/gradio_api/queue/join",
        "/gradio_api/call/sample",
        "/login",
        "/nothing",
    ):
        status, said = ask(url, path, large, **JSON)
        assert status == 413 and said.startswith("The request exceeds the limit of 6 MB")
    parts = "".join(
        f'--b\r\nContent-Disposition: form-data; name="files"; filename="{n}"\r\n\r\n{"x" * (5 << 20)}\r\n'
        for n in range(7)
    )
    status, said = ask(url, "/gradio_api/upload", parts + "--b--\r\n", Content_Type="multipart/form-data; boundary=b")
    assert status == 413 and said.startswith("The request exceeds the limit of 32 MB")


def test_no_request_makes_the_server_download_a_url(url):
    """Gradio would accept a URL in place of any file, load all of it into memory and cache it."""
    config = json.loads(ask(url, "/config")[1])
    box = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "image-reference")
    index, event = next((i, d) for i, d in enumerate(config["dependencies"]) if d["inputs"] == [box])
    with site("x" * 100) as port:
        file = {"path": f"http://127.0.0.1:{port}/x", "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"fn_index": event.get("id", index), "data": [file], "session_hash": "fetch"})
        assert ask(url, "/gradio_api/queue/join", body, **JSON)[0] == 200
        said = ask(url, "/gradio_api/queue/data?session_hash=fetch")[1]
    assert "This app accepts uploaded files only, not URLs" in said
    for path in f"file=http://127.0.0.1:{port}/x", "proxy=http://127.0.0.1:1/", "deep_link?session_hash=fetch":
        assert ask(url, f"/gradio_api/{path}") == (404, "This app does not provide this route.")


def test_an_unknown_forwarded_host_appears_in_no_url_of_the_page(url):
    assert "evil.test" not in ask(url, "/config", X_Forwarded_Host="evil.test", X_Gradio_Server="http://evil.test")[1]
    assert "app.test" in ask(url, "/config", X_Forwarded_Host="app.test")[1]


def test_old_uploads_are_deleted_and_new_ones_kept(tmp_path):
    """Also those that Gradio does not know of: incomplete uploads, and those of a process that was killed."""
    for name in "old/a.png", "old/new.png", "tmpabc", "empty/b.png":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in "old/a.png", "tmpabc", "empty/b.png":
        os.utime(tmp_path / name, (1000, 1000))
    server.sweep(tmp_path, before=2000)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["new.png"]


@contextmanager
def site(*pages, proxy_to=None):
    """Serve pages of another site on this machine, or proxy an app as nginx does by default: Host is the app's own
    address, and no header identifies the client. Yields the port.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if proxy_to:
                return self.passed_on()
            content = pages[0].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def passed_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            with closing(http.client.HTTPConnection("127.0.0.1", proxy_to)) as connection:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                while part := answer.read1():
                    self.wfile.write(part)
            self.close_connection = True

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.handle_error = True, lambda *args: None  # a reader that has disconnected
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


ATTACK = """async ([app, board]) => {
    const body = (fn_name, data) => JSON.stringify({component_id: board, fn_name, session_hash: "x", data});
    const to = `${app}/gradio_api/component_server`;
    const tries = [
        () => fetch(to, {method: "POST", mode: "no-cors", body: body("poll", {})}),
        () => fetch(to, {method: "POST", headers: {"Content-Type": "application/json"}, body: body("poll", {})}),
        () => fetch(`${app}/config`),
        () => fetch(`${app}/gradio_api/queue/data?session_hash=x`),
    ];
    const read = [];
    for (const attempt of tries)
        read.push(await attempt().then((answer) => answer.ok && answer.text(), () => false));
    return read;
}"""


@contextmanager
def tab(browser):
    """Yield a new page with long timeouts."""
    with context_for(browser, {}) as context:
        yield context.new_page()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["evil.test", "127.0.0.1", "localhost"])
def test_a_page_of_another_site_can_neither_read_nor_change_anything(url, home, board, browser, name):
    runs = sorted(home.iterdir())
    with site("<title>evil</title>") as port, tab(browser) as page:
        page.goto(f"http://{name}:{port}/")
        assert page.evaluate(ATTACK, [url, board]) == [False] * 4
        # The owner's cookie in the same browser makes no difference.
        assert page.context.request.get(owners(url, home), max_redirects=0).status == 303
        assert page.context.cookies(url)
        assert page.evaluate(ATTACK, [url, board]) == [False] * 4
        # A host name of the other site that now resolves to this machine: DNS rebinding.
        rebound = page.goto(f"http://rebound.test:{urlsplit(url).port}/")
        assert rebound.status == 403 and "--allowed-host" in rebound.text()
    assert sorted(home.iterdir()) == runs


@pytest.mark.browser
def test_an_allowed_site_may_embed_the_page(url, browser):
    """As with <gradio-app>, whose scripts call the app from a page on another site."""
    get_config = "(app) => fetch(`${app}/config`).then((answer) => answer.json()).then(({version}) => version)"
    join = """(app) => fetch(`${app}/gradio_api/call/sample`, {method: "POST", credentials: "include",
        headers: {"Content-Type": "application/json"}, body: JSON.stringify({data: ["small-32", 1, 2]})})
        .then((answer) => answer.json()).then(({event_id}) => event_id)"""
    with site("<title>blog</title>") as port, tab(browser) as page:
        page.goto(f"http://blog.test:{port}/")
        for app in url, url.replace("127.0.0.1", "app.test"):
            assert page.evaluate(get_config, app).startswith("6.")
            assert len(page.evaluate(join, app)) > 10


@pytest.mark.browser
def test_behind_a_silent_proxy_the_page_works_and_nobody_is_the_owner(url, home, board, browser):
    with site(proxy_to=urlsplit(url).port) as port, tab(browser) as page:
        page.goto(f"http://app.test:{port}/")
        page.wait_for_selector(".player .prediction canvas")
        set_run(page, timesteps=3, seed=1)
        page.click("#generate")
        until(page, "d.state === 'done'")
        run = next(path.name for path in home.iterdir() if path.is_dir())
        asking = f"""() => fetch('/gradio_api/component_server', {{method: 'POST', body: JSON.stringify(
            {call(board, "offer", {"run": run})}), headers: {{'Content-Type': 'application/json'}}}})
            .then((answer) => answer.json()).then(({{login}}) => login)"""
        assert page.evaluate(asking) is False
        offered = ask(
            f"http://127.0.0.1:{port}", "/gradio_api/component_server", call(board, "offer", {"run": run}), **JSON
        )
        assert json.loads(offered[1])["login"] is False
        page.goto(owners(f"http://app.test:{port}", home), wait_until="commit")  # the owner, from outside
        assert page.evaluate(asking) is True and "key=" not in page.url


@pytest.mark.browser
def test_invented_sessions_do_not_affect_a_page(url, home, board, browser, tmp_path):
    """Gradio keeps only the state of the most recent sessions, and anybody may invent new ones."""
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with tab(browser) as page:
        page.goto(url)
        open_train_tab(page)
        page.locator("#intake .files").set_input_files(sorted(tmp_path.iterdir()))
        page.wait_for_selector("#intake .upload[data-state=checked]")
        for number in range(SESSIONS + 10):
            body = call(board, "poll").replace('"x"', f'"invented-{number}"')
            assert ask(url, "/gradio_api/component_server", body, **JSON)[0] == 200
        page.click("#rent-training")  # a run that waits for a rented machine
        sooner_or_later(
            lambda: [run.config()["dataset"]["count"] for run in list_runs(home) if run.dataset.is_dir()] == [2],
            seconds=150,
        )
