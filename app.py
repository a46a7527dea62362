"""The app: arguments and environment -> engine -> page. On Hugging Face Spaces this file is what runs."""

import argparse
import os

from dp.data.limits import Limits
from dp.system import startup

with startup.exit_on_error():  # before Gradio and torch read the environment
    startup.prepare()
    Limits.from_environment()

import spaces  # noqa: F401 (before torch, which dp loads: on ZeroGPU it has to be first)

from dp.serving.engine import Engine
from dp.system.device import set_thread_count
from dp.system.environment import precision, runs_dir
from dp.ui.app import build_app
from dp.ui.auth.permission import on_zero_gpu

HERE = os.path.dirname(os.path.abspath(__file__))
ON_ZERO_GPU = on_zero_gpu()

with startup.exit_on_error():
    set_thread_count()
    device, accelerate = ("cpu", False) if ON_ZERO_GPU else (None, True)
    options = {"device": device, "runs": runs_dir(), "accelerate": accelerate, "precision": precision()}
    engine = Engine(os.path.join(HERE, "checkpoints"), **options)
    demo = build_app(engine, on_zero_gpu=ON_ZERO_GPU)


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch a diffusion model denoise, in the browser.")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 lets other machines in (default: this one only)")
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a name that visitors reach the server by"
    )
    parser.add_argument(
        "--allowed-origin", action="append", default=[], metavar="URL", help="another site that may call the server"
    )
    parser.add_argument("--port", help="port to listen on (default: the first free one from 7860)")
    args = parser.parse_args()
    allowed = {"allowed_hosts": args.allowed_host, "allowed_origins": args.allowed_origin}
    with startup.exit_on_error():
        name, port = startup.listen_address(args.host, args.port)
        if not ON_ZERO_GPU:
            engine.warm_up()
        demo.launch(server_name=name, server_port=port, **allowed)


if __name__ == "__main__":
    main()
