"""A page served by a process of its own, as a person would start it."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The page as ZeroGPU gets it. Elsewhere `spaces.GPU` changes nothing, so that the handler bound there can run as it is.
IN_CALL = """
import sys, torch
from dp.engine import Engine
from dp.ui import LAUNCH, build_app
torch.set_num_threads(1)
build_app(Engine(sys.argv[1], device="cpu"), on_zero_gpu=True).launch(server_port=int(sys.argv[3]), **LAUNCH)
"""


@contextmanager
def serve(*arguments: str, **environment: str):
    """Run python with `arguments` and `--port`, wait until it serves, and give its address; ends the process after."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    env = os.environ | quiet | {"DP_DEVICE": "cpu"} | environment
    command = [sys.executable, *arguments, "--port", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Running on local URL" in line:
                    break
            else:
                raise RuntimeError("it did not start:\n" + "".join(said))
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the server
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
