"""A page served by a process of its own, as a person would start it."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def serve(*arguments: str, **environment: str):
    """Run python with `arguments` and `--port`, wait until it serves, and give its address; ends the process after."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"} | environment
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
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
