"""A Hub on this machine: as much of the real one's interface as fetching and publishing a model needs, with tokens,
private and gated models, and any trouble that a test asks for.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants

from dp.hub import client

# What a request is for, by its method and path.
KINDS = {
    "list": r"GET /api/models",
    "create": r"POST /api/repos/create",
    "card": r"POST /api/validate-yaml",
    "preupload": r"POST /api/(models|spaces)/(?P<repo>[^/]+/[^/]+)/preupload/main",
    "commit": r"POST /api/(models|spaces)/(?P<repo>[^/]+/[^/]+)/commit/main",
    "info": r"GET /api/(models|spaces)/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>.+))?",
    "tree": r"GET /api/(models|spaces)/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>\w+)",
    "batch": r"POST /(spaces/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "store": r"PUT /store/(?P<oid>\w+)",
    "file": r"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
}


class FakeHub:
    """users: token -> (account, may write). repos: name -> {"files": {name: bytes}, "private": bool}. trouble: kind of
    request -> what answers instead. requests: (kind, path, token) of each, in order. listing: name of a model -> what
    is said to be in it, instead of the truth. commit: the newest commit of every model. history: commit -> the files of
    its model then.
    """

    def __init__(self):
        self.users = {"hf_alice": ("alice", True), "hf_reader": ("alice", False)}
        self.repos, self.trouble, self.listing, self.requests, self.stored = {}, {}, {}, [], {}
        self.history = {}
        self.commit = "a" * 40
        self.closing, self.lock = threading.Event(), threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                self.asked = parse_qs(urlsplit(self.path).query)
                path = unquote(urlsplit(self.path).path)
                found = {kind: re.fullmatch(rule, f"{self.command} {path}") for kind, rule in KINDS.items()}
                kind = next((kind for kind, match in found.items() if match), None)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                self.token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
                if kind is None:  # what the Hub's client asks on its own account
                    return self.answer(404)
                hub.requests.append((kind, path, self.token))
                if kind in hub.trouble:
                    hub.trouble[kind](self)
                elif self.token and self.token not in hub.users:
                    self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
                else:
                    answer = {"commit": hub._commit, "list": hub.models}.get(kind) or getattr(hub, kind)
                    answer(self, body, **found[kind].groupdict())

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

            def answer(self, status=200, value=None, headers=None, raw=None, length=None):
                content = json.dumps(value or {}).encode() if raw is None else raw
                self.send_response(status)
                for name, text in {"content-length": length or len(content), **(headers or {})}.items():
                    self.send_header(name, str(text))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                if length:
                    self.close_connection = True

            def wait(self, seconds):
                hub.closing.wait(seconds)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def kinds(self):
        return [kind for kind, *_ in self.requests]

    def may(self, handler, repo, write=False):
        account, may_write = self.users.get(handler.token, ("", False))
        if write and not (may_write and repo.split("/")[0] == account):
            handler.answer(403, {"error": "forbidden"})
        elif not write and (repo not in self.repos or (self.repos[repo]["private"] and repo.split("/")[0] != account)):
            handler.answer(404 if handler.token else 401, {"error": "?"}, {"X-Error-Code": "RepoNotFound"})
        else:
            return True

    # What answers each kind of request.

    def models(self, handler, body):
        """Those in public whose cards have all the tags, the newest first."""
        tags, owner = handler.asked["filter"], "".join(f"{name}/" for name in handler.asked.get("author", []))
        found = []
        for name, repo in reversed(self.repos.items()):
            card = repo["files"].get("README.md", b"").decode()
            if name.startswith(owner) and not repo["private"] and all(f": {t}\n" in card for t in tags):
                found.append({"id": name, "modelId": name})
        handler.answer(200, found[: int(handler.asked["limit"][0])])

    def create(self, handler, body):
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if self.may(handler, repo, write=True):
            status = 409 if repo in self.repos else 200
            self.repos.setdefault(repo, {"files": {}, "private": wanted.get("visibility") == "private"})
            handler.answer(status, {"url": f"{self.url}/{repo}", "error": "you already created this"})

    def card(self, handler, body):
        handler.answer(200, {"errors": [], "warnings": []})

    def preupload(self, handler, body, repo):
        if self.may(handler, repo, write=True):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            plan = [{"path": n, "uploadMode": modes[n.endswith(("safetensors", "png"))]} for n in names]
            handler.answer(200, {"files": [file | {"shouldIgnore": False, "oid": None} for file in plan]})

    def batch(self, handler, body, repo):
        if self.may(handler, repo, write=True):
            objects = json.loads(body)["objects"]
            actions = {o["oid"]: {"upload": {"href": f"{self.url}/store/{o['oid']}"}} for o in objects}
            handler.answer(200, {"objects": [o | {"actions": actions[o["oid"]]} for o in objects]})

    def store(self, handler, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.stored[oid] = body
        handler.answer(200, {}, {"ETag": oid})

    def _commit(self, handler, body, repo):
        if self.may(handler, repo, write=True):
            files = dict(self.repos[repo]["files"])  # others read the old one meanwhile
            for line in map(json.loads, body.splitlines()):
                file = line["value"]
                if line["key"] == "file":
                    files[file["path"]] = base64.b64decode(file["content"])
                elif line["key"] == "lfsFile":
                    files[file["path"]] = self.stored[file["oid"]]
                elif line["key"] == "deletedFile":
                    del files[file["path"]]
            commit = hashlib.sha1(body).hexdigest()
            with self.lock:
                self.repos[repo]["files"], self.history[commit], self.commit = files, files, commit
            handler.answer(200, {"commitOid": self.commit, "commitUrl": f"{self.url}/{repo}/commit/{self.commit}"})

    def info(self, handler, body, repo, revision):
        if self.may(handler, repo):
            if revision not in (None, "main", self.commit):
                return handler.answer(404, {"error": "?"}, {"X-Error-Code": "RevisionNotFound"})
            with self.lock:
                files, commit = self.repos[repo]["files"], self.commit
            lfs = {
                n: {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b), "pointerSize": 1} for n, b in files.items()
            }
            listed = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
            listed = [
                file | ({"lfs": lfs[n]} if (n := file["rfilename"]).endswith("safetensors") else {}) for file in listed
            ]
            truth = {"id": repo, "sha": commit, "private": self.repos[repo]["private"], "siblings": listed}
            handler.answer(200, truth | self.listing.get(repo, {}))

    def tree(self, handler, body, repo, revision):
        if self.may(handler, repo):
            files = self.history.get(revision, self.repos[repo]["files"])
            handler.answer(200, [{"type": "file", "path": n, "size": len(b), "oid": "?"} for n, b in files.items()])

    def file(self, handler, body, repo, revision, name):
        if self.may(handler, repo):
            content = self.history.get(revision, self.repos[repo]["files"])[name]
            etag = hashlib.sha256(content).hexdigest()
            handler.answer(200, headers={"ETag": f'"{etag}"', "X-Repo-Commit": self.commit}, raw=content)


@contextmanager
def connected(monkeypatch, tmp_path, fake=None):
    """The Hub that this process talks to, on a machine that is logged in nowhere."""
    fake = fake or FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    client._configure_client.cache_clear()
    try:
        yield fake
    finally:
        fake.close()
        client._configure_client.cache_clear()
        huggingface_hub.close_session()


# Kinds of trouble.


def refuses(status, **headers):
    """Answers with an error."""
    return lambda handler: handler.answer(
        status, {"error": "refused"}, {k.replace("_", "-"): v for k, v in headers.items()}
    )


def says(raw):
    """Answers with these bytes."""
    return lambda handler: handler.answer(200, raw=raw)


def sleeps(handler):
    handler.wait(30)
    handler.close_connection = True


def breaks_off(handler):
    handler.answer(200, raw=b"{", length=1000)


def trickles(handler):
    """A byte now and then, without end."""
    handler.send_response(200)
    handler.send_header("content-length", "1000000")
    handler.end_headers()
    for _ in range(600):
        try:
            handler.wfile.write(b" ")
        except OSError:
            break
        time.sleep(0.05)
    handler.close_connection = True
