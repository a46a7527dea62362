"""The page and the Hub, which runs on this machine: loading a model into Denoise, publishing a run from the board,
which token is used, and what a public Space keeps.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from contextlib import contextmanager

import gradio as gr
import numpy as np
import pytest
import torch
from conftest import WINDOWS
from exported import load_onnx
from fakehub import connected, refuses, trickles
from gradio_client import Client
from huggingface_hub import ModelCard
from launching import launched
from models import MODEL, randomize
from pages import canvas_pixels, owners_cookie, set_run, unfold, until, window
from PIL import Image
from saving import save_policy
from starlette.requests import Request
from test_models import TINY, fake  # noqa: F401 (a fixture)
from test_train_tab import asking, call, home, make_run, open_train_tab, sooner_or_later  # noqa: F401 (home, too)

from dp import RIN, DiffusionPolicy
from dp.data.codec import make_grid, to_uint8
from dp.data.report import DatasetReport
from dp.hub import downloads
from dp.networks.rin import SequenceRIN
from dp.serving.engine import Engine
from dp.ui.auth import permission
from dp.ui.sampling import page_values
from dp.ui.training import publish
from dp.ui.web.graph import INSTALL

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WRITER, READER = "hf_alice", "hf_reader"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with connected(monkeypatch, tmp_path) as hub:
        yield hub


def put(hub, name, seed=0, private=False, network=None, **card):
    """Put a tiny model on the Hub."""
    policy = DiffusionPolicy(network or randomize(RIN(**TINY), seed=seed))
    save_policy(policy, hub.folder / name, **card)
    files = {file.name: file.read_bytes() for file in (hub.folder / name).iterdir()}
    hub.repos[name] = {"files": files, "private": private}
    return policy


@pytest.fixture
def environment(hub, tmp_path, home):  # noqa: F811
    """Return the environment of an app that uses this Hub and keeps all its files in one folder."""
    hub.folder = tmp_path / "theirs"
    (tmp_path / "temporary").mkdir()
    known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}
    known |= {"HF_HUB_CACHE": str(tmp_path / "hf" / "hub"), "HF_TOKEN_PATH": str(tmp_path / "hf" / "token")}
    known |= {"GRADIO_TEMP_DIR": str(tmp_path / "temporary"), "NO_PROXY": "127.0.0.1,localhost"}
    return known | {"DP_HOME": str(home), "CPU_CORES": "1"}


@contextmanager
def served(environment, **options):
    """Serve the app in this process, with the Hub of `connected`; options as in `launched`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with launched(environment["DP_HOME"], **options) as url:
            yield url


def load(page, name):
    if not page.is_visible("#hub-load"):
        unfold(page.get_by_role("button", name="Load a model from the Hub"))
    page.locator("#hub-name input").fill(name)
    page.click("#hub-load")


def says(page, words, seconds=150):
    page.wait_for_function(
        "words => document.querySelector('#hub-said')?.textContent.includes(words)", arg=words, timeout=seconds * 1000
    )


def choices(page, control):
    box = page.locator(f"#{control} input")
    box.click()
    found = page.get_by_role("listbox").get_by_role("option").all_inner_texts()
    box.blur()  # a field opens its list when it gets the focus
    return [text.removeprefix("✓").strip() for text in found]


def check_pictures(page, policy, name):
    """Check that Denoise draws the same images with the model `name` as the library."""
    page.wait_for_function("name => document.querySelector('#checkpoint input').value === name", arg=name)
    set_run(page, timesteps=5, seed=3)
    page.click("#generate")
    until(page, "d.state === 'done' && step === 5")
    images = to_uint8(policy.sample(4, timesteps=5, sampler="dpmpp_2m", seed=3))
    np.testing.assert_allclose(canvas_pixels(page), make_grid(images), atol=1)


# ----------------------------------------------------------------------------
# Loading


@pytest.mark.browser
@pytest.mark.parametrize("options", WINDOWS[:1])
def test_a_model_of_the_hub_is_loaded_and_sampled(browser, hub, environment, options, tmp_path):
    policy = put(hub, "bob/faces", dataset="[x](http://example.com) ![y](http://example.com/y.png)")
    with served(environment) as url:
        assert hub.requests == []  # no request when the page opens
        with window(browser, url, **options) as page:
            load(page, "bob/nothing")
            says(page, "⚠️ there is no model bob/nothing, or it is private; check the name")
            assert page.is_visible("#hub-load") and not page.is_visible("#hub-cancel")
            load(page, " bob/faces ")  # this name is typed, the next one selected
            says(page, "bob/faces is loaded and selected.")
            assert page.locator(".about a, .about img").count() == 0  # text of a model card stays text
            check_pictures(page, policy, "bob/faces")
            unfold(page.get_by_role("tab", name="Compare"))
            assert choices(page, "compare-checkpoint") == [MODEL, "bob/faces"]
            assert page.input_value("#compare-checkpoint input") == MODEL
            page.locator("#axis input").click()
            page.get_by_role("option", name="Checkpoint").click()
            page.locator("#values .token").first.wait_for()
            put(hub, "bob/other")
            page.get_by_role("tab", name="Denoise").click()
            fold = page.get_by_role("button", name="Load a model from the Hub")
            fold.click()
            fold.click()  # it lists the models each time it opens
            page.locator("#hub-name input").click()
            page.get_by_role("listbox").get_by_role("option", name="bob/other").click()
            page.click("#hub-load")
            says(page, "bob/other is loaded and selected.")
            unfold(page.get_by_role("tab", name="Compare"))
            page.locator("#values input").click()
            page.get_by_role("listbox").get_by_role("option", name="bob/other").click()
            assert page.locator("#values .token").all_inner_texts() == [MODEL, "bob/faces", "bob/other"]
            with window(browser, url, **options) as other:  # another user's
                sooner_or_later(lambda: choices(other, "checkpoint") == [MODEL, "bob/other", "bob/faces"])
                a_download_can_be_cancelled_and_blocks_nobody(page, other, hub, tmp_path)
    assert {token for *_, token in hub.requests} == {""}


def a_download_can_be_cancelled_and_blocks_nobody(page, other, hub, tmp_path):
    put(hub, "bob/slow")
    hub.trouble["file"] = trickles
    fetching = lambda: list((tmp_path / "cache").glob("models--*/.fetching-*"))  # noqa: E731
    page.get_by_role("tab", name="Denoise").click()
    load(page, "bob/slow")
    says(page, "Downloading bob/slow: contacting the Hub")
    sooner_or_later(lambda: len(fetching()) == 1)
    set_run(other, timesteps=3, seed=0)
    other.click("#generate")
    until(other, "d.state === 'done'")
    page.click("#hub-cancel")
    page.wait_for_selector("#hub-load", state="visible")
    sooner_or_later(lambda: fetching() == [])
    assert page.inner_text("#hub-said") == ""
    hub.trouble.clear()
    load(page, "bob/slow")
    says(page, "bob/slow is loaded")


@pytest.mark.filterwarnings("ignore")
def test_only_the_owner_loads_a_private_model_with_this_machines_login(hub, environment, home):  # noqa: F811
    """All requests come from this machine, as behind a silent proxy: only the key makes an owner."""
    put(hub, "alice/secret", private=True)
    for place in {}, {"SPACE_ID": "ann/space"}:
        with served(environment | {"HF_TOKEN": READER} | place) as url:
            for cookie in "", owners_cookie(url, home):
                hub.requests.clear()
                may = bool(cookie and not place)
                assert ("is loaded" if may else "or it is private") in said_of(url, "alice/secret", cookie)
                assert {token for *_, token in hub.requests} == {READER if may else ""}


def said_of(url, name, cookie=""):
    """Request a model as the page does, and return the final message."""
    with urllib.request.urlopen(f"{url}/config") as answer:
        config = json.load(answer)
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "hub-load")
    index = next(d["id"] for d in config["dependencies"] if [button, "click"] in d["targets"])
    body = json.dumps({"fn_index": index, "data": [name], "session_hash": "x"}).encode()
    headers = {"Content-Type": "application/json", "Cookie": cookie}
    urllib.request.urlopen(urllib.request.Request(f"{url}/gradio_api/queue/join", body, headers)).close()
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash=x") as stream:
        for line in stream:
            if b'"process_completed"' in line:
                return json.loads(line.removeprefix(b"data:"))["output"]["data"][2]


def test_a_public_space_evicts_the_least_recently_used_model(home, tmp_path, monkeypatch, hub):  # noqa: F811
    hub.folder, cache = tmp_path / "theirs", tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for number, name in enumerate(("ann/one", "bob/two", "bob/three")):
        put(hub, name, seed=number)
        folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("a" * 40)
        folder.parent.mkdir(parents=True)
        (hub.folder / name).rename(folder)
        downloads.add(home, name, folder)
        time.sleep(0.02)
    engine = Engine(tmp_path / "bundled", device="cpu", runs=home)
    assert [entry.name for entry in engine.checkpoints()] == ["bob/three", "bob/two", "ann/one"]
    assert engine.policy("ann/one").image_size == 8  # used just now
    downloads.evict(home, 2, 1 << 30)
    assert [entry.name for entry in Engine(runs=home).checkpoints()] == ["ann/one", "bob/three"]  # also in a new app
    assert sorted(path.name for path in cache.iterdir()) == ["models--ann--one", "models--bob--three"]
    downloads.evict(home, 2, 1)
    assert [entry.name for entry in engine.checkpoints()] == ["ann/one"]
    (cache / "models--ann--one").rename(tmp_path / "elsewhere")  # the cache is cleared
    assert engine.checkpoints() == []


def test_loading_a_model_gives_no_access_to_runs(home, tmp_path, monkeypatch, hub, tiny_rin):  # noqa: F811
    make_run(home, tiny_rin(), "bob")
    hub.folder = tmp_path / "theirs"
    policy = put(hub, "bob/000002")
    downloads.add(home, "bob/000002", hub.folder / "bob" / "000002")
    engine = Engine(tmp_path / "bundled", device="cpu", runs=home)
    monkeypatch.setenv("SPACE_ID", "ann/space")
    assert page_values.usable_checkpoints(engine) == ["bob/000002"]
    weights = engine.policy("bob/000002").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in policy.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_a_model_too_large_for_a_space_is_rejected_before_its_download(hub, environment, monkeypatch):
    put(hub, "bob/faces")
    monkeypatch.setattr("dp.ui.hub_models.MAX_BYTES", 5000)
    with served(environment | {"SPACE_ID": "ann/space"}) as url:
        assert "the limit on this page is 5,000" in said_of(url, "bob/faces")
    assert hub.kinds().count("file") == 2  # only the config and the card were downloaded


@pytest.mark.filterwarnings("ignore")
def test_on_zero_gpu_a_model_of_images_is_loaded_and_sampled(hub, environment, home):  # noqa: F811
    policy = put(hub, "bob/faces")
    put(hub, "bob/paths", network=SequenceRIN(dim=8, length=8, depth=1, num_latents=4, heads=1, conv_widths=(8,)))
    with served(environment | {"SPACES_ZERO_GPU": "true"}, on_zero_gpu=True) as url:
        assert "bob/paths is a model of sequences" in said_of(url, "bob/paths")
        assert "is loaded and selected" in said_of(url, "bob/faces")
        client, settings = Client(url, verbose=False), {"images": 1, "timesteps": 3, "seed": 1}
        picture, _ = client.predict("bob/faces", **settings, sampler="ddim", api_name="/sample")
        drawn = np.asarray(Image.open(picture))
        assert call(url, "publish", {})[0] == {"problem": permission.ON_ZERO_GPU}
    images = policy.sample(1, timesteps=3, sampler="ddim", seed=1)
    np.testing.assert_allclose(drawn, make_grid(to_uint8(images)), atol=1)


# ----------------------------------------------------------------------------
# Publishing


def everything_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.browser
@pytest.mark.parametrize("options", WINDOWS[1:])
def test_a_published_run_loads_again_and_its_token_is_not_stored(
    browser,
    hub,
    environment,
    tmp_path,
    home,  # noqa: F811
    tiny_rin,
    options,
    capfd,
):
    run, answers = make_run(home, tiny_rin(), "My cats!", (2, 4)), []
    with served(environment) as url, window(browser, url, **options) as page:
        page.on("response", lambda answer: answers.append(answer) if "component_server" in answer.url else None)
        open_train_tab(page)
        page.click("#board [data-verb=publish]")
        page.wait_for_selector("#board .publish .token")
        assert page.get_attribute("#board .publish .repo", "placeholder") == "you/my-cats"
        for token, said in ((WRITER + "x", "does not accept this token"), (READER, "this token lacks a permission")):
            page.fill("#board .publish .token", token)
            page.fill("#board .publish .repo", "alice/cats")
            page.click("#board .publish .main")
            page.get_by_text(said).wait_for()
            assert page.input_value("#board .publish .token") == ""
        page.fill("#board .publish .token", WRITER)
        page.fill("#board .publish .license", "cc0-1.0")
        page.check("#board .publish .private")
        page.select_option("#board .publish select", "2")
        page.click("#board .publish .main")
        page.get_by_text("Published: ").wait_for()
        assert page.get_attribute("#board .publish .outcome a", "href") == f"{hub.url}/alice/cats"
        said = "".join(answer.text() for answer in answers) + page.content()
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")

        published = hub.repos["alice/cats"]
        assert published["private"] and published["files"]["samples.png"] == run.sample(2).read_bytes()
        published["private"] = False
        page.get_by_role("tab", name="Denoise").click()
        load(page, "alice/cats")
        says(page, "alice/cats is loaded")
        check_pictures(page, DiffusionPolicy.from_pretrained(run.checkpoint(2)), "alice/cats")
    said += "".join(capfd.readouterr())
    for token in (WRITER, READER):
        assert token not in said + stored and token.encode() not in everything_below(tmp_path)
    card = ModelCard(published["files"]["README.md"].decode())
    assert card.data.license == "cc0-1.0" and "4 images accepted (" in card.text.replace("\\", "")
    names = DatasetReport.load(run.dataset).accepted
    assert names and not any(name in card.text.replace("\\", "") for name in names)


def signed_in(token, expires_in=3600):
    """Return a request of a visitor who has signed in on a Space."""
    info = {"userinfo": {"preferred_username": "alice"}, "access_token": token, "expires_at": time.time() + expires_in}
    return gr.Request(request=Request({"type": "http", "session": {"oauth_info": info}}))


@pytest.mark.parametrize(
    "place, typed, request_of, login, sent",
    [
        ("home", READER, asking(is_local_user=True), True, READER),
        ("home", "", asking(is_local_user=True), True, "hf_owner"),
        ("home", "", asking(), False, None),
        ("home", READER, asking(), False, READER),
        ("space", "", signed_in(READER), True, READER),
        ("space", f" {WRITER}\n", signed_in(READER), True, WRITER),
        ("space", "", asking(is_local_user=True), False, None),
        ("space", "", signed_in(READER, -1), False, None),
    ],
)
def test_which_token_publishes(fake, home, monkeypatch, tiny_rin, place, typed, request_of, login, sent):  # noqa: F811
    fake.users["hf_owner"] = ("owner", True)
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    if place == "space":
        monkeypatch.setenv("SPACE_ID", "owner/space")
        monkeypatch.setenv("DP_ALLOW_TRAINING", "1")
    run = make_run(home, tiny_rin())
    asked = {"run": run.id, "checkpoint": 2, "repo": "alice/cats", "private": False, "license": "", "token": typed}
    told, answer = publish.offer({"run": run.id}, request_of), publish.publish(asked, request_of)
    assert told["login"] is login and told["repo"] == "secret"
    assert {token for *_, token in fake.requests} - {""} == ({sent} if sent else set())  # storage requests have none
    if sent is None:
        assert answer["problem"].startswith("publishing needs a token with write access")
    elif sent == WRITER:
        assert answer == {"url": f"{fake.url}/alice/cats"}
    else:
        assert "this token lacks a permission for alice/cats" in answer["problem"]
        assert sent not in json.dumps(answer)


def test_publishing_needs_permission_and_rejects_malformed_requests(fake, home, monkeypatch, tiny_rin):  # noqa: F811
    run = make_run(home, tiny_rin())
    asked = {"run": run.id, "checkpoint": 2, "repo": "alice/cats", "private": False, "license": "", "token": WRITER}
    for wrong in ([], None, {}, asked | {"token": 3}, asked | {"repo": None}, asked | {"checkpoint": None}):
        assert publish.publish(wrong, asking()) == {"problem": "malformed request"}
    for change, words in (
        ({"run": "x"}, "this run no longer exists"),
        ({"checkpoint": 3}, "step 3: the folder does not exist"),
        ({"repo": "cats"}, "'cats' is not a valid repository name"),
        ({"token": "two words"}, "the token is malformed"),
    ):
        assert words in publish.publish(asked | change, asking())["problem"]
    fake.trouble["create"] = refuses(429, retry_after=7)
    assert publish.publish(asked, asking()) == {"problem": "the Hub received too many requests; wait 7 seconds"}
    fake.requests.clear()
    monkeypatch.setenv("SPACE_ID", "ann/space")
    assert (
        publish.publish(asked, signed_in(WRITER))
        == publish.offer(asked, signed_in(WRITER))
        == {"problem": permission.OFF}
    )
    assert fake.requests == []


def test_a_page_needs_its_packages_before_anything_is_published(fake, home, monkeypatch, tiny_rin):  # noqa: F811
    run = make_run(home, tiny_rin())
    asked = {"run": run.id, "checkpoint": 2, "repo": "alice/cats", "private": False, "license": "", "token": WRITER}
    monkeypatch.setitem(sys.modules, "onnx", None)
    answer = publish.publish(asked | {"page": True}, asking())
    assert answer == {"problem": f"exporting needs onnx, which is not installed: {INSTALL}"}
    assert fake.requests == []


@pytest.mark.soak
def test_a_model_is_also_published_as_a_page(fake, home, tiny_rin):  # noqa: F811
    load_onnx()
    run = make_run(home, tiny_rin())
    asked = {"run": run.id, "checkpoint": 2, "repo": "alice/cats", "private": False, "license": "mit", "token": WRITER}
    answer = publish.publish(asked | {"page": True}, asking())
    assert answer == {"url": f"{fake.url}/alice/cats", "page": f"{fake.url}/spaces/alice/cats"}
    commits = [path for kind, path, token in fake.requests if kind == "commit" and token == WRITER]
    assert commits == ["/api/models/alice/cats/commit/main", "/api/spaces/alice/cats/commit/main"]
    files = fake.repos["alice/cats"]["files"]  # of both
    assert {"config.json", "index.html", "runtime/LICENSE"} <= files.keys()
    card = ModelCard(files["README.md"].decode()).data
    assert (card.title, card.sdk, card.license) == ("cats", "static", "mit")
    assert b"samples" not in files["index.html"]
    about = {"id": "alice/cats", "sdk": "docker", "private": False}
    fake.trouble["info"] = lambda handler: handler.answer(200, about)
    answer = publish.publish(asked | {"page": True}, asking())
    words = "the model is published, but not its page: alice/cats is a Space of another kind"
    assert answer["url"] and answer["problem"].startswith(words)
