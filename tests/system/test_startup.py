"""dp.system.startup: in unusual environments, the app starts or exits with a one-line message."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import httpx
import pytest
import torch
from huggingface_hub.utils import httpx as hub_httpx

from dp.data.sources import Limits
from dp.hub import client, models
from dp.system import environment, proxies, startup
from dp.system.device import best_device

ROOT = Path(__file__).resolve().parents[2]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """An environment that says nothing, and is as it was afterwards, whatever is written into it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.lower() in PROXIES or name.startswith(("GRADIO_", "DP_"))]:
        del os.environ[name]
    monkeypatch.setattr(proxies, "hidden", {})
    monkeypatch.setattr(proxies, "_problems", [])


@pytest.fixture
def setting(monkeypatch):
    return monkeypatch.setenv


def sentence(capsys, act) -> str:
    """Return the message with which `act` ends the process, with exit code 2."""
    with pytest.raises(SystemExit) as end, startup.exit_on_error():
        act()
    said, complaint = capsys.readouterr()
    assert (end.value.code, said, complaint.count("\n")) == (2, "", 1)
    return complaint


# ----------------------------------------------------------------------------
# Variables


@pytest.mark.parametrize(
    "text, cores",
    [("", None), ("2", 2), ("1.5", 2), ("1500m", 2), ("100m", 1), (" 1 ", 1), ("0.5", 1), ("999999999", 4)],
)
def test_cores_are_numbers_or_kubernetes_quantities_rounded_up(setting, monkeypatch, text, cores):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    setting("CPU_CORES", text)
    assert environment.cores() == cores


@pytest.mark.parametrize(
    "name, value, rule",
    [
        *[("CPU_CORES", value, "1500m") for value in ("abc", "0", "0m", "-1", "nan", "inf", "1e400", "2 cores", "٢")],
        *[("DP_DEVICE", value, "cpu, cuda") for value in ("gpu", "cuda:x", "cuda:-1", "cuda:", "../x", "meta")],
        *[("GRADIO_SERVER_PORT", value, "1 to 65535") for value in ("abc", "", "0", "-1", "99999", "7860.0")],
        ("GRADIO_NUM_PORTS", "many", "whole number"),
        ("DP_PRECISION", "fp16", "f32 or bf16"),
        ("DP_HOME", str(ROOT / "app.py"), "writable folder"),
        ("DP_HOME", str(ROOT / "app.py" / "runs"), "writable folder"),
        ("DP_HOME", "/proc/runs", "writable folder"),
        ("DP_HOME", "~nobody-of-that-name/runs", "use an absolute path"),
        ("GRADIO_TEMP_DIR", str(ROOT / "app.py"), "writable folder"),
    ],
)
def test_an_invalid_variable_is_reported_with_its_rule(setting, capsys, name, value, rule):
    setting(name, value)
    complaint = sentence(capsys, startup.prepare)
    assert name in complaint and rule in complaint and (not value or value in complaint)


@pytest.mark.parametrize("value", ["abc", "", "0", "-1", "1e3", "²", "9" * 5000])
def test_an_invalid_limit_is_reported(setting, value):
    setting("DP_MAX_ZIP_BYTES", value)
    with pytest.raises(ValueError, match=r"DP_MAX_ZIP_BYTES.* whole number of at least 1, got") as error:
        Limits.from_environment()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "CUDA:7", "mps"])
def test_a_missing_device_is_reported(setting, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    setting("DP_DEVICE", name)
    with pytest.raises(ValueError, match=f"DP_DEVICE is '{name.lower()}', but PyTorch finds no .* unset DP_DEVICE"):
        best_device()
    setting("DP_DEVICE", "")
    assert best_device() == torch.device("cpu")


def test_a_device_index_beyond_the_last_is_reported(setting, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    setting("DP_DEVICE", "cuda:2")
    with pytest.raises(ValueError, match="'cuda:2', but this machine has cuda:0 to cuda:1"):
        best_device()
    setting("DP_DEVICE", "cuda:1")
    assert best_device() == torch.device("cuda", 1)


def test_runs_are_beside_the_app_or_in_dp_home(setting, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert environment.runs_dir() == ROOT / "runs"
    setting("DP_HOME", "")
    assert environment.runs_dir() == ROOT / "runs"
    setting("HOME", str(tmp_path / "me"))
    for given, place in (("~/x", tmp_path / "me" / "x"), ("x", tmp_path / "x"), (str(tmp_path), tmp_path)):
        setting("DP_HOME", given)
        assert environment.runs_dir() == place
        startup.check_home()
        assert place.is_dir() and list(place.glob("tmp*")) == []


def test_an_unusable_default_folder_only_disables_training(monkeypatch, capsys):
    monkeypatch.setattr("dp.system.environment.ROOT", Path("/proc"))
    startup.check_home()
    assert re.fullmatch(r".*'/proc/runs' cannot be used \(.*\)\. Set DP_HOME.*\n", capsys.readouterr().err)


# ----------------------------------------------------------------------------
# Folders


@pytest.mark.parametrize("trouble", ["a file", "somebody else's", "a link", None])
def test_gradio_gets_a_private_folder_if_the_usual_one_is_unusable(monkeypatch, tmp_path, trouble):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    startup.private_folder.cache_clear()
    usual = tmp_path / f"dp-{os.geteuid()}"
    if trouble == "a file":
        usual.touch()
    elif trouble == "a link":
        (tmp_path / "theirs").mkdir()
        usual.symlink_to(tmp_path / "theirs")
    elif trouble:
        usual.mkdir()
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(usual, 12345, 12345)
    startup.prepare_folders()
    chosen = Path(os.environ["GRADIO_TEMP_DIR"])
    assert chosen.name == "dp-uploads" and (chosen.parent == usual) == (trouble is None)
    assert chosen.parent.parent == tmp_path and chosen.parent.stat().st_uid == os.geteuid()
    startup.private_folder.cache_clear()


def test_an_unknown_user_gets_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as where a container runs under a number
    startup.private_folder.cache_clear()
    startup.prepare_folders()
    assert Path.home() == tmp_path / f"dp-{os.geteuid()}" and Path.home().is_dir()
    startup.private_folder.cache_clear()


# ----------------------------------------------------------------------------
# Proxies


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY", "All_Proxy"])
def test_loopback_bypasses_the_proxy_and_other_hosts_do_not(setting, name):
    setting(name, "http://10.0.0.1:3128")
    setting("NO_PROXY", "corp.example, [::1],10.0.0.0/8,corp:abc,fe80::/10,*.z,é")
    proxies.prepare()
    assert os.environ["no_proxy"] == "corp.example,::1,10.0.0.0/8,*.z,localhost,127.0.0.1"
    assert os.environ[name] == "http://10.0.0.1:3128" and proxies.problem() is None and proxies.hidden == {}
    for library in (httpx, hub_httpx):
        with library.Client() as client:
            taken = {url: client._transport_for_url(library.URL(url)) for url in ("http://a.test", "https://a.test")}
            assert client._transport in taken.values() or name.lower() == "all_proxy"
            assert any(transport is not client._transport for transport in taken.values())
            for host in ("127.0.0.1", "localhost", "[::1]", "corp.example"):
                assert client._transport_for_url(library.URL(f"http://{host}:7860/")) is client._transport


def test_without_proxies_nothing_is_set(setting):
    proxies.prepare()
    assert not any(name.lower() in PROXIES for name in os.environ)


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    "address, rule",
    [
        ("socks5://me:secret@h:1080", "pip install socksio"),
        ("socks5h://h:1080", "pip install socksio"),
        ("socks://h:1080", "socks5"),  # as GNOME sets it
        ("htp://h", "scheme must be http"),
        ("http://h:port", "http://host:port"),
        ("http://[::1", "http://host:port"),
        ("http://é\n", "http://host:port"),
    ],
)
def test_an_unusable_proxy_disables_only_the_hub(setting, monkeypatch, name, address, rule):
    monkeypatch.setattr(proxies, "socksio", None)
    setting(name, address)
    proxies.prepare()
    for library in (httpx, hub_httpx):
        library.Client().close()  # which fails with such an address, and with it Gradio
    assert proxies.hidden == {name: address}  # given back to the training process
    words = rf"(?s)proxy in the environment variable {name}=.* cannot be used: .*{rule}"
    with pytest.raises(client.HubConnectionError, match=words) as error:
        models.list_models()
    assert "secret" not in str(error.value)
    monkeypatch.setattr(proxies, "_problems", [])
    setting(name, address)  # as for a command, which hides nothing
    with pytest.raises(client.HubConnectionError, match=words):
        models.list_models()


# ----------------------------------------------------------------------------
# Where to listen


@pytest.mark.parametrize("text", ["99999", "-1", "0", "abc", "", "7860.0", "1" * 5000])
def test_an_invalid_port_is_reported(capsys, text):
    complaint = sentence(capsys, lambda: startup.listen_address(None, text))
    assert complaint.startswith("--port must be a port from 1 to 65535, got '") and len(complaint) < 300


@pytest.mark.parametrize("host", ["nosuch.invalid", "203.0.113.7", "a..b", "x" * 80 + ".test", "::g", "127.0.0.1:80"])
def test_an_invalid_host_is_reported_with_its_option(setting, capsys, host):
    assert sentence(capsys, lambda: startup.listen_address(host, None)).startswith(
        "--host must be an address or name of this"
    )
    setting("GRADIO_SERVER_NAME", host)
    assert sentence(capsys, lambda: startup.listen_address(None, None)).startswith(
        "GRADIO_SERVER_NAME must be an address"
    )


def test_a_port_in_use_is_reported_or_skipped(setting, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        complaint = sentence(capsys, lambda: startup.listen_address("0.0.0.0", str(port)))
        assert f"--port {port} is in use" in complaint
        setting("GRADIO_SERVER_PORT", str(port))
        assert startup.listen_address(None, None)[1] > port
        setting("GRADIO_NUM_PORTS", "1")
        assert f"no port from {port} to {port} is free" in sentence(capsys, lambda: startup.listen_address(None, None))


def test_every_form_of_a_local_address_is_accepted(setting):
    for host in ("127.0.0.1", "0.0.0.0", "localhost", "", None):
        assert startup.listen_address(host, None)[0] in ("127.0.0.1", "0.0.0.0")
    setting("GRADIO_SERVER_NAME", "0.0.0.0")
    assert startup.listen_address(None, None)[0] == "0.0.0.0" and "GRADIO_SERVER_NAME" not in os.environ
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    for host in ("::", "::1", "[::1]"):
        assert startup.listen_address(host, None)[0] == f"[{host.strip('[]')}]"


# ----------------------------------------------------------------------------
# The app itself


def test_the_app_starts_in_a_hostile_environment_and_prints_its_address_at_once(tmp_path):
    """Started from elsewhere, with its output in a file."""
    for folder in ("tmp", "cwd"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tmp" / "gradio").touch()
    asked = {
        "HOME": str(tmp_path / "me"),
        "DP_HOME": "~/x",
        "HF_HOME": "/proc/nothing",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    asked |= {
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "all_proxy": "socks://127.0.0.1:9",
    }
    asked |= {"NO_PROXY": "[::1]", "CPU_CORES": "1500m", "PYTHONIOENCODING": "ascii", "DP_DEVICE": "CPU"}
    command = [sys.executable, str(ROOT / "app.py"), "--host", "localhost"]
    with (tmp_path / "out").open("wb") as out:
        started = {"cwd": tmp_path / "cwd", "env": {**os.environ, **asked}, "stdout": out, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **started)
    try:
        deadline = time.monotonic() + 150
        while not (found := re.search(r"(http://127.0.0.1:\d+/)\?key=", (tmp_path / "out").read_text())):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()
            time.sleep(0.1)
        with build_opener(ProxyHandler({})).open(found[1], timeout=150) as answer:
            assert answer.status == 200
    finally:
        process.terminate()
        process.wait(150)
    said = (tmp_path / "out").read_text()
    assert "all_proxy='socks://127.0.0.1:9' cannot be used" in said and "Traceback" not in said
    assert (tmp_path / "me" / "x" / ".owner-key").exists() and list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("name, value", [("GRADIO_SERVER_PORT", "abc"), ("DP_MAX_PIXELS", "0")])
def test_the_app_exits_with_a_one_line_message(name, value):
    command = [sys.executable, str(ROOT / "app.py")]
    quiet = {"DP_HOME": os.devnull, "DP_DEVICE": "cpu"}
    done = subprocess.run(
        command, env={**os.environ, **quiet, name: value}, capture_output=True, text=True, timeout=150
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert name in done.stderr
