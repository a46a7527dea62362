"""dp.hub.models and dp.hub.client with a local fake of the Hub: round trips, and all kinds of failures."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import huggingface_hub
import nowhere
import numpy as np
import pytest
import torch
from fakehub import breaks_off, connected, refuses, says, sleeps, trickles
from gradio_client import Client
from huggingface_hub import ModelCard, constants
from models import randomize
from pages import ROOT, serve
from PIL import Image
from saving import save_policy

from dp import RIN, DiffusionPolicy
from dp.checkpoints import folder as checkpoint
from dp.data.codec import encode_png
from dp.hub import client, models
from dp.hub.client import HubError

TINY = dict(dim=8, image_size=8, patch_size=4, depth=1, latent_self_attn_depth=1)
TINY |= dict(num_latents=4, heads=1, dim_head=8, conv_blocks=1)
WRITER, READER = "hf_alice", "hf_reader"
# How the Hub's client hands a file to the package below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def fake(request, monkeypatch, tmp_path):
    """Set a short timeout for tests in which no response comes, and one that suits a busy machine for the others."""
    comes_never = any(words in request.node.name for words in ("silence", "byte by byte", "slow_download"))
    for module in (client, models):
        monkeypatch.setattr(module, "TIMEOUT_S", 0.4 if comes_never else 10)
        monkeypatch.setattr(module, "MIN_BYTES_PER_S", 1e6)
    with connected(monkeypatch, tmp_path) as fake:
        yield fake


@pytest.fixture
def policy():
    return DiffusionPolicy(randomize(RIN(**TINY)), timesteps=7, noise_schedule="cosine")


@pytest.fixture
def folder(policy, tmp_path):
    save_policy(policy, tmp_path / "mine", step=1234, dataset="cats")
    return tmp_path / "mine"


@pytest.fixture
def faces(fake, folder):
    """Return the name of a public model on the Hub."""
    fake.repos["alice/faces"] = {"files": {path.name: path.read_bytes() for path in folder.iterdir()}, "private": False}
    return "alice/faces"


def same(ours: DiffusionPolicy, theirs: DiffusionPolicy) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return ours.config == theirs.config and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cached(path) -> list[str]:
    """Return the files in the cache, except the references from branches to commits."""
    return sorted(p.name for p in path.rglob("*") if p.is_file() and "refs" not in p.parts)


def error_of(call, *arguments, token=None, **keywords) -> str:
    """Return the message of the HubError of a call. It comes at once, is one line, and contains no token."""
    start = time.monotonic()
    with pytest.raises(HubError) as caught:
        call(*arguments, token=token, **keywords)
    assert time.monotonic() - start < 20  # the Hub of these tests is silent for 30
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    if isinstance(token, str) and token.strip():
        assert token not in "".join(traceback.format_exception(caught.value))
    return text


# ----------------------------------------------------------------------------
# There and back


def test_a_published_model_round_trip(fake, policy, tmp_path):
    picture = encode_png(np.zeros((16, 16, 3), np.uint8))
    facts = {"pictures": "112 used, 3 left out"}
    url = policy.push_to_hub("alice/faces", token=WRITER, samples=picture, facts=facts, step=99, license="cc0-1.0")
    assert url == f"{fake.url}/alice/faces"
    files = fake.repos["alice/faces"]["files"]
    assert files.keys() == {"config.json", "model.safetensors", "README.md", "samples.png"}
    assert files["samples.png"] == picture
    assert json.loads(files["config.json"])["step"] == 99
    assert {token for _, _, token in fake.requests} <= {WRITER, ""}  # storage is asked without it

    back = DiffusionPolicy.from_pretrained("alice/faces", token=False)
    assert same(policy, back)
    assert torch.equal(policy.sample(2, timesteps=3, seed=5), back.sample(2, timesteps=3, seed=5))
    assert cached(tmp_path / "cache") == ["README.md", "config.json", "model.safetensors"]  # and no picture
    fake.requests.clear()
    assert same(policy, DiffusionPolicy.from_pretrained("alice/faces", token=False))
    assert fake.kinds() == ["info"]  # nothing is fetched twice


def test_the_card_describes_the_model_and_its_use(fake, policy):
    facts = {"pictures": "112 used, 3 left out"}
    picture = encode_png(np.zeros((16, 16, 3), np.uint8))
    policy.push_to_hub("alice/faces", token=WRITER, samples=picture, facts=facts, step=4321, license="cc0-1.0")
    text = fake.repos["alice/faces"]["files"]["README.md"].decode()
    card = ModelCard(text).data
    assert (card.license, card.library_name, card.pipeline_tag) == ("cc0-1.0", "dp", "unconditional-image-generation")
    for words in ('from_pretrained("alice/faces")', "![Samples](samples.png)", "4,321 training steps", "cosine",
                  "| pictures | 112 used, 3 left out |"):  # fmt: skip
        assert words in text
    code = text.split("```python\n")[1].split("```")[0].replace("16, timesteps=50", "2, timesteps=2")
    names = {}
    exec(code, names)
    assert names["images"].shape == (2, 3, 8, 8)


def test_published_models_are_listed_for_all_owners_or_one(fake, policy):
    fake.users["hf_bob"] = ("bob", True)
    fake.repos["ann/llm"] = {"files": {"README.md": b"---\nlibrary_name: other\n---\n"}, "private": False}
    assert models.list_models() == []
    for name, token, private in (
        ("alice/faces", WRITER, False),
        ("alice/secret", WRITER, True),
        ("bob/cats", "hf_bob", False),
    ):
        policy.push_to_hub(name, token=token, private=private)
    assert models.list_models() == ["bob/cats", "alice/faces"] and models.list_models("alice", token=READER) == [
        "alice/faces"
    ]
    assert fake.requests[-1][2] == READER


def test_a_changed_folder_is_published_again(fake, policy, folder):
    models.upload(folder, "alice/faces", token=WRITER)
    assert same(policy, DiffusionPolicy.from_pretrained("alice/faces", token=False))
    assert json.loads(fake.repos["alice/faces"]["files"]["config.json"]) == checkpoint.read_config(folder)
    other = DiffusionPolicy(randomize(RIN(**TINY), seed=1))
    other.save_pretrained(folder)
    models.upload(folder, "alice/faces", token=WRITER, license="mit")
    assert same(other, DiffusionPolicy.from_pretrained("alice/faces", token=False))
    assert json.loads(fake.repos["alice/faces"]["files"]["config.json"])["license"] == "mit"
    assert "license" not in checkpoint.read_config(folder)  # the folder is left as it is


def test_a_local_folder_takes_precedence_over_the_hub(fake, policy, faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = DiffusionPolicy(randomize(RIN(**TINY), seed=1))
    other.save_pretrained("alice/faces")
    assert same(other, DiffusionPolicy.from_pretrained("alice/faces"))
    assert fake.requests == []


@pytest.mark.parametrize("source", ["mine", "/no/where", "a/b/c", "./faces", "alice/", "~/x", Path("alice/faces")])
def test_a_source_that_is_not_a_model_name_is_a_folder(fake, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        DiffusionPolicy.from_pretrained(source)
    assert fake.requests == []


def test_a_revision_is_downloaded_and_stays_unchanged(fake, policy, folder):
    models.upload(folder, "alice/faces", token=WRITER)
    assert same(policy, DiffusionPolicy.from_pretrained("alice/faces", token=False, revision=fake.commit))
    assert "no such revision" in error_of(models.download, "alice/faces", token=False, revision="v2")
    for odd in ("../main", "a b", "", "/etc"):
        assert "is not a valid revision" in error_of(models.download, "alice/faces", token=False, revision=odd)


def test_a_private_model_needs_a_token(fake, policy):
    policy.push_to_hub("alice/secret", token=WRITER, private=True)
    assert fake.repos["alice/secret"]["private"]
    assert "or it is private" in error_of(models.download, "alice/secret", token=False)
    assert same(policy, DiffusionPolicy.from_pretrained("alice/secret", token=READER))
    policy.push_to_hub("alice/secret", token=WRITER, private=True)  # again


def test_a_private_upload_to_a_public_repository_is_rejected(fake, faces, folder):
    assert "already exists and is public" in error_of(models.upload, folder, faces, token=WRITER, private=True)
    assert "commit" not in fake.kinds()


def test_concurrent_downloads_of_the_same_model(fake, faces, policy, tmp_path):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(models.download(faces, token=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert same(policy, DiffusionPolicy.from_pretrained(found[0]))
    assert cached(tmp_path / "cache") == ["README.md", "config.json", "model.safetensors"]


def test_an_earlier_download_is_used_when_the_hub_does_not_respond(fake, faces, policy):
    DiffusionPolicy.from_pretrained(faces)
    fake.close()
    huggingface_hub.close_session()  # and its open connection
    assert same(policy, DiffusionPolicy.from_pretrained(faces))
    # A visitor's call never finds what somebody else's token has fetched.
    assert "check the network connection" in error_of(models.download, faces, token=READER)
    assert "check the network connection" in error_of(models.download, "alice/other")


# ----------------------------------------------------------------------------
# Whose token


def test_the_login_of_the_machine_is_used_only_without_a_token_argument(fake, faces, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    models.download(faces)
    models.download(faces, token="")
    models.download(faces, token=False)
    assert fake.requests[0][2] == WRITER
    assert {token for kind, _, token in fake.requests[-2:]} == {""}
    fake.requests.clear()
    for none in ("", False, "  "):
        assert "needs a token" in error_of(models.upload, folder, "alice/new", token=none)
    assert fake.requests == []
    models.upload(folder, "alice/new")
    assert "alice/new" in fake.repos


@pytest.mark.parametrize("token", ["mock-oauth-token-for-local-dev", "hf_spoofed", "hf_alice_but_expired"])
def test_an_invalid_token_is_reported(fake, faces, folder, token):
    for call, arguments in ((models.download, [faces]), (models.upload, [folder, faces])):
        assert "does not accept this token" in error_of(call, *arguments, token=token)


@pytest.mark.parametrize("token", ["hf_a\r\nX-Evil: 1", "two words", "hf_ümlaut", "\0", "hf_" + "x" * 5000])
def test_a_malformed_token_is_never_sent(fake, faces, token):
    assert "token is malformed" in error_of(models.download, faces, token=token)
    assert fake.requests == []


@pytest.mark.parametrize("kind", ["info", "file", "create", "preupload", "batch", "store", "commit"])
def test_tokens_are_never_logged_or_stored(fake, faces, folder, kind, caplog, capfd, tmp_path):
    caplog.set_level("INFO")
    caplog.set_level("DEBUG", "huggingface_hub")
    answer = {"error": f"bad token {WRITER}"}
    fake.trouble[kind] = lambda handler: handler.answer(418, answer, {"X-Error-Message": f"bad {WRITER}"})
    call = (models.download, faces) if kind in ("info", "file") else (models.upload, folder, faces)
    assert "error 418" in error_of(*call, token=WRITER)
    assert WRITER not in caplog.text + "".join(capfd.readouterr())
    assert not any(WRITER.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------
# What can go wrong on the way: what the Hub does, and what is said

TROUBLE = {
    "an expired token": (refuses(401, X_Error_Message="Invalid credentials in Authorization header"), "has expired"),
    "forbidden": (refuses(403), "lacks a permission"),
    "gated": (refuses(403, X_Error_Code="GatedRepo"), "is restricted; request it at"),
    "missing": (refuses(404, X_Error_Code="RepoNotFound"), "there is no model alice/faces"),
    "too many requests": (refuses(429, Retry_After="3600"), "wait 3600 seconds"),
    "too many, by the Hub's own count": (refuses(429, ratelimit='"api";r=0;t=55'), "wait 55 seconds"),
    "too many, until a date": (refuses(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), "wait a few minutes"),
    "too many, in no hurry to say": (refuses(429), "wait a few minutes"),
    "the Hub is broken": (refuses(500), r"an internal problem \(error 500\)"),
    "the Hub is away": (refuses(503, Retry_After="1"), "error 503"),
    "some other refusal": (refuses(418), r"rejected the request \(error 418\): refused"),
    "silence": (sleeps, "did not respond in time"),
    "broken off": (breaks_off, "was interrupted"),
}
ODD = {
    "no JSON": (says(b"{"), "did not respond like the Hub"),
    "a list": (says(b"[]"), "did not respond like the Hub"),
    "nothing": (says(b""), "did not respond like the Hub"),
    "an empty object": (says(b"{}"), "did not respond like the Hub"),
    "a login page": (says(b"<html>Welcome to the hotel"), "did not respond like the Hub"),
    "nested without end": (says(b"[" * 100_000), "did not respond like the Hub"),
    "byte by byte": (trickles, "did not respond in time"),
}


def check(fake, says, call, *arguments, **keywords):
    assert re.search(says, error_of(call, *arguments, token=READER if call is models.download else WRITER, **keywords))


@pytest.mark.parametrize("name", [*TROUBLE, *ODD])
def test_an_error_of_a_download_has_a_readable_message(fake, faces, name, tmp_path):
    fake.trouble["info"], says = (TROUBLE | ODD)[name]
    check(fake, says, models.download, faces)
    assert cached(tmp_path) and cached(tmp_path / "cache") == []


@pytest.mark.parametrize("name", sorted({*TROUBLE, *ODD} - {"missing", "a list", "an empty object"}))
def test_an_error_of_listing_has_a_readable_message(fake, name):
    fake.trouble["list"], says = (TROUBLE | ODD)[name]
    assert re.search(says, error_of(models.list_models, token=WRITER))


@pytest.mark.parametrize("name", TROUBLE)
def test_an_error_during_a_download_has_a_readable_message_and_leaves_nothing(fake, faces, name, tmp_path, policy):
    trouble, says = TROUBLE[name]
    asked = fake.file

    def weights_only(handler):  # the last of the three files
        return trouble(handler) if "safetensors" in handler.path else asked(handler, b"", *_parts(handler.path))

    fake.trouble["file"] = weights_only
    check(fake, says, models.download, faces)
    assert cached(tmp_path / "cache") == []
    fake.trouble.clear()
    assert same(policy, DiffusionPolicy.from_pretrained(faces))  # and the next time it is well again


def _parts(path):
    user, name, _, revision, file = path.strip("/").split("/")
    return f"{user}/{name}", revision, file


DAMAGE = {
    "cut short": (lambda raw: raw[:-1], "was not downloaded correctly"),
    "too long": (lambda raw: raw + b"\0" * 10_000_000, "was not downloaded correctly"),
    "other bytes": (lambda raw: raw[:-1] + b"\x55", "was not downloaded correctly"),
    "nothing": (lambda raw: b"", "was not downloaded correctly"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_are_not_cached(fake, faces, name, tmp_path):
    damage, says = DAMAGE[name]
    whole = fake.repos[faces]["files"]["model.safetensors"]
    asked = fake.file

    def change(handler):
        if "safetensors" not in handler.path:
            return asked(handler, b"", *_parts(handler.path))
        handler.answer(200, raw=damage(whole))

    fake.trouble["file"] = change
    check(fake, says, models.download, faces)
    assert cached(tmp_path / "cache") == []


def test_a_slow_download_is_aborted(fake, faces):
    fake.trouble["file"] = trickles
    listed = [{"rfilename": "config.json", "size": 90_000}, {"rfilename": "model.safetensors", "size": 10}]
    fake.listing[faces] = {"siblings": listed}
    assert "did not respond in time" in error_of(models.download, faces, token=False)


@pytest.mark.parametrize("name", TROUBLE)
@pytest.mark.parametrize("kind", ["create", "preupload", "batch", "commit"])
def test_an_error_of_publishing_has_a_readable_message(fake, folder, kind, name):
    fake.trouble[kind], says = TROUBLE[name]
    if kind == "create" and name in ("an expired token", "forbidden"):
        fake.trouble["info"] = fake.trouble[kind]  # where the Hub's client looks whether it is there already
    check(fake, says, models.upload, folder, "alice/faces")


@pytest.mark.parametrize("name", ["the Hub is broken", "silence", "broken off", "too many requests"])
def test_a_failed_upload_has_a_readable_message(fake, folder, name):
    fake.trouble["store"], says = TROUBLE[name]
    check(fake, says, models.upload, folder, "alice/faces")
    assert "commit" not in fake.kinds()


@pytest.mark.parametrize("raw", [b"{", b"[]", b"<html>", b"{}"])
@pytest.mark.parametrize("kind", ["preupload", "commit"])
def test_an_unexpected_response_to_publishing_has_a_readable_message(fake, folder, kind, raw):
    fake.trouble[kind] = says(raw)
    check(fake, "did not respond like the Hub", models.upload, folder, "alice/faces")


def test_a_card_rejected_by_the_hub_is_reported_with_its_message(fake, folder):
    errors = {"errors": [{"message": '"license" must be one of [mit, ...]'}]}
    fake.trouble["card"] = lambda handler: handler.answer(400, errors)
    check(fake, 'error 400.*"license" must be one of', models.upload, folder, "alice/faces", license="my-own")


def test_publishing_to_another_account_is_rejected(fake, folder):
    check(fake, "lacks a permission for bob/faces", models.upload, folder, "bob/faces")
    assert "lacks a permission" in error_of(models.upload, folder, "alice/faces", token=READER)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid", "http://[bad", "nonsense"])
def test_a_missing_network_has_a_readable_message(fake, folder, address, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for call, arguments in ((models.download, ["alice/faces"]), (models.upload, [folder, "alice/faces"])):
        text = error_of(call, *arguments, token=WRITER)
        assert address in text and ("cannot be reached" in text or "in time" in text)


def test_offline_mode_sends_no_requests(fake, faces, policy, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in error_of(models.download, faces, token=READER)
    assert fake.requests == []


def test_a_name_that_is_neither_local_nor_on_the_hub_is_reported(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = error_of(DiffusionPolicy.from_pretrained, "runs/mine")
    assert "no local folder 'runs/mine'" in text and "there is no model runs/mine" in text


@pytest.mark.parametrize(
    "name", ["faces", "a/b/c", "../faces", "alice/..", "alice/a b", "", "alice/fa\nces", "-/-", "x/" * 90]
)
def test_an_invalid_name_is_never_requested(fake, folder, name):
    assert "write it as user/name" in error_of(models.download, name, token=False)
    assert "write it as user/name" in error_of(models.upload, folder, name, token=WRITER)
    assert fake.requests == []


def test_a_full_disk_is_reported(fake, faces, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    assert "cannot be written" in error_of(models.download, faces, token=False)


@pytest.mark.parametrize("picture", [b"GIF89a", b""])
def test_the_image_of_a_card_must_be_a_png(fake, folder, picture):
    assert "must be a PNG" in error_of(models.upload, folder, "alice/faces", token=WRITER, samples=picture)


def test_the_image_of_a_card_may_be_a_file(fake, folder, tmp_path):
    with io.BytesIO() as file:
        Image.new("RGB", (4, 4)).save(file, "PNG")
        (tmp_path / "samples.png").write_bytes(file.getvalue())
    models.upload(folder, "alice/faces", token=WRITER, samples=tmp_path / "samples.png")
    assert fake.repos["alice/faces"]["files"]["samples.png"] == (tmp_path / "samples.png").read_bytes()


# ----------------------------------------------------------------------------
# Models that mean harm


def _config(change):
    def edit(files):
        config = json.loads(files["config.json"])
        change(config)
        files["config.json"] = json.dumps(config).encode()

    return edit


HOSTILE = {
    "pickles only": (
        lambda files: [files.pop("model.safetensors"), files.update({"pytorch_model.bin": b"\x80"})],
        "no model.safetensors; it has only pickle files",
    ),
    "no config": (lambda files: files.pop("config.json"), "it has no config.json"),
    "empty": (dict.clear, "it has no config.json"),
    "another library's": (
        lambda files: files.update({"config.json": b'{"architectures": ["BertModel"], "auto_map": {}}'}),
        "unknown field 'architectures'",
    ),
    "a link for a config": (lambda files: files.update({"config.json": b"../../../etc/passwd"}), "not valid JSON"),
    "unknown keys": (_config(lambda c: c.update(code="import os")), "unknown field 'code'"),
    "wrong shapes": (_config(lambda c: c["network"].update(dim=16)), "do not match"),
    "a giant": (_config(lambda c: c["network"].update(dim=4096, depth=64)), "more than 2,000,000,000"),
    "weights that are a pickle": (lambda files: files.update({"model.safetensors": b"\x80\x04."}), "cannot be read"),
    "a large config": (lambda files: files.update({"config.json": b" " * 1_000_001}), "the limit is 1,000,000"),
    "a large card": (lambda files: files.update({"README.md": b" " * 2_000_000}), "the limit is 1,000,000"),
    "weights that the config does not account for": (
        lambda files: files.update({"model.safetensors": files["model.safetensors"] + b"\0" * 2_000_000}),
        "is rejected: its model.safetensors has",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_invalid_model_is_rejected_and_leaves_nothing(fake, faces, name, tmp_path):
    edit, says = HOSTILE[name]
    files = fake.repos[faces]["files"]
    files |= {"evil.py": b"boom", "pytorch_model.bin": b"\x80", "../../up.json": b"{}", "/abs": b"", "a\nb": b""}
    edit(files)
    check(fake, says, models.download, faces)
    assert cached(tmp_path / "cache") == []
    asked = {path.rsplit("/", 1)[1] for kind, path, _ in fake.requests if kind == "file"}
    assert asked <= {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("size", [None, -1, "7", 10**18, 1.5])
def test_sizes_are_checked_before_the_download(fake, faces, size):
    fake.listing[faces] = {"siblings": [{"rfilename": name, "size": size} for name in models.FILES]}
    check(fake, "is rejected: its config.json has", models.download, faces)
    assert "file" not in fake.kinds()


@pytest.mark.parametrize("commit", [None, "", "main", "../../../up", "A" * 40, 7])
def test_an_invalid_commit_is_not_used_as_a_path(fake, faces, commit, tmp_path):
    fake.listing[faces] = {"sha": commit}
    check(fake, "did not respond like the Hub", models.download, faces)
    assert cached(tmp_path / "cache") == []


# ----------------------------------------------------------------------------
# The app does without


@pytest.mark.soak
def test_the_app_starts_and_samples_without_a_network(tmp_path):
    # As a visitor has it: nothing told not to call out, and nothing in a cache.
    home, log, start = {"HF_HOME": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "True"}, [], time.monotonic()
    with serve("tests/helpers/nowhere.py", CPU_CORES="1", log=log, **home) as address:
        client = Client(address, verbose=False)
        picture, _ = client.predict(images=1, timesteps=2, seed=0, api_name="/sample")
        client.close()
    assert picture and [line for line in log if line.startswith("called")] == []
    assert time.monotonic() - start < nowhere.SILENCE_S  # for which one call alone would wait


def test_the_network_guard_detects_a_connection():
    script = (
        "import sys, nowhere, urllib.request; nowhere.SILENCE_S = 0; sys.addaudithook(nowhere.blackhole);"
        "urllib.request.urlopen(sys.argv[1])"
    )
    for url, host in (("http://huggingface.co/api", "huggingface.co"), ("http://192.0.2.1:80/", "192.0.2.1")):
        done = subprocess.run(
            [sys.executable, "-c", script, url], cwd=ROOT / "tests" / "helpers", capture_output=True, text=True
        )
        assert done.stdout == f"called {host}\n" and f"{host} cannot be reached" in done.stderr
