"""app.py as ZeroGPU runs it, on a CPU: the real `spaces` package, whose calls each run in a forked worker, against a
stand-in for the platform's device API.

    with DeviceAPI() as api, serve("tests/zerogpu.py", **api.environment): ...

The stand-in notes each request in `api.log`.
"""

import json
import os
import runpy
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
LEASE = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}


class DeviceAPI:
    """Lends the GPU that is not there to whoever asks."""

    def __init__(self):
        self.log: list[str] = []
        log = self.log

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                path = urlsplit(self.path).path
                log.append(path)
                body = json.dumps(LEASE).encode() if path == "/schedule" else b""
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

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
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
