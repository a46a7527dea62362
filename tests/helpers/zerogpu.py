"""app.py as ZeroGPU runs it, on a CPU: the real `spaces` package, whose calls each run in a forked worker, against a
stand-in for the platform's device API.

    with DeviceAPI() as api, serve("tests/helpers/zerogpu.py", **api.environment): ...

The stand-in notes the path of each request in `api.log`, what each call has asked for in `api.asked`, and its worker's
process in `api.workers`. It lends its GPU, or gives the one of ANSWERS that `api.answer` names.
"""

import json
import os
import runpy
import sys
import tempfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

ROOT = Path(__file__).resolve().parents[2]
LEASE = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
SUCCEEDED = f"succeeded\ndata: {json.dumps(LEASE)}"
# To a call that asks for a GPU: the status, then JSON, or the events of the queue that it waits in. A time to wait of
# less than nothing means that no wait will help.
ANSWERS = {
    "lent": (200, LEASE),
    "quota": (429, {"left": 5, "wait": 3720}),
    "too long": (429, {"left": 120, "wait": -1}),
    "too many runs": (429, {"left": 0, "wait": 0}),
    "no GPU": (503, {}),
    "expired": (401, {}),
    "trouble": (500, {}),
    "queue": (200, ["ping", "ping", SUCCEEDED]),
    "queue timeout": (200, ["ping", "failed"]),
    "long queue": (200, [SUCCEEDED]),  # but before that pings, until the test sets `api.served`
}
PING_S = 0.2


class DeviceAPI:
    """Lends the GPU that is not there to whoever asks, or says no."""

    def __init__(self):
        self.answer = "lent"
        self.served = threading.Event()
        self.log: list[str] = []
        self.asked: list[dict[str, str]] = []
        self.workers: list[int] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                url = urlsplit(self.path)
                query = dict(parse_qsl(url.query))
                api.log.append(url.path)
                if url.path == "/allow":
                    api.workers.append(int(query["pid"]))
                if url.path != "/schedule":
                    return self.reply(200, "application/json", b"")
                api.asked.append(query)
                status, content = ANSWERS[api.answer]
                if isinstance(content, dict):
                    return self.reply(status, "application/json", json.dumps(content).encode())
                self.reply(status, "text/event-stream")
                with suppress(OSError):  # it may wait no longer
                    while api.answer == "long queue" and not api.served.wait(PING_S):
                        self.wfile.write(b"event: ping\n\n")
                        self.wfile.flush()
                    for event in content:
                        self.wfile.write(f"event: {event}\n\n".encode())
                        self.wfile.flush()
                        time.sleep(PING_S)

            def reply(self, status, kind, body=None):
                self.send_response(status)
                self.send_header("content-type", kind)
                if body is not None:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._home = tempfile.TemporaryDirectory()

    @property
    def environment(self) -> dict[str, str]:
        cgroup = Path(self._home.name) / "cgroup"
        cgroup.write_text("0::/stand-in\n")
        return {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "ZEROGPU_OFFLOAD_DIR": self._home.name,
            "ZEROGPU_PROC_SELF_CGROUP_PATH": str(cgroup),
            "HOME": self._home.name,
        }

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DP_DEVICE", "cpu")
    import spaces.zero.wrappers

    # What needs the driver: binding the lent GPU in the worker, and moving tensors to it.
    spaces.zero.wrappers.torch.init = spaces.zero.wrappers.torch.move = lambda *args, **kwargs: None

    # The model of the tests, and the pauses of PacedEngine, in the worker.
    from models import models_dir, pause

    import dp.serving.engine
    from dp.diffusion.policy import DiffusionPolicy

    class SmallEngine(dp.serving.engine.Engine):
        def __init__(self, *roots, **options):
            super().__init__(models_dir(), **options)

    def run_slowly(policy, state, run=DiffusionPolicy.run):
        for step in run(policy, state):
            pause(step.timesteps)
            yield step

    dp.serving.engine.Engine, DiffusionPolicy.run = SmallEngine, run_slowly
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
