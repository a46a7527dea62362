"""Compare the backends of a bundled model on this CPU: PyTorch, and OpenVINO in float32 and in bfloat16. The time of a
network call, and how far the images of a whole run are from PyTorch's, in gray levels of 255.

    pip install -r benchmarks/requirements.txt -r requirements-cpu.txt
    python benchmarks/backends.py --batch 1 4 16 64

The app uses float32 only. A run of 20 steps compares 16 images, guided where the model has classes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import print_table, time_alternating
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone without installing

from dp import DiffusionPolicy
from dp.data.codec import to_uint8
from dp.serving.backends import OpenVINONetwork, convert, example_inputs, load_openvino

ROOT = Path(__file__).resolve().parent.parent
TORCH, FLOAT32, BFLOAT16 = "PyTorch", "OpenVINO, float32", "OpenVINO, bfloat16"
IMAGES, CALLS = 16, 10


def make_networks(policy: DiffusionPolicy, folder: Path) -> dict[str, nn.Module]:
    """Return the network of a checkpoint folder by the name of its backend; bfloat16 only where the CPU has it."""
    core = load_openvino().Core()
    networks = {TORCH: policy.model}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.xml"
        convert(folder, file)
        networks[FLOAT32] = OpenVINONetwork(file, policy.model)
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            networks[BFLOAT16] = OpenVINONetwork(file, policy.model, "bf16")
    return networks


def calls(network: nn.Module, inputs: list[torch.Tensor]) -> Callable[[], None]:
    """Return a function that makes CALLS calls in a row, as a run does: for a moment after the last one, each backend's
    threads still wait for the next, and take time from the other's.
    """

    def make() -> None:
        with torch.no_grad():
            for _ in range(CALLS):
                network(*inputs, return_latents=True)

    return make


def drift(policy: DiffusionPolicy, networks: dict[str, nn.Module], timesteps: int) -> list[tuple]:
    """Return for each backend: how far its images are from PyTorch's, on average and at most."""
    labels = (
        {"label": [1 + i % policy.num_classes for i in range(IMAGES)], "guidance": 3.0} if policy.num_classes else {}
    )
    images = {}
    for name, network in networks.items():
        own = DiffusionPolicy(network, **policy.config).eval()
        images[name] = to_uint8(own.sample(IMAGES, timesteps=timesteps, seed=0, **labels)).astype(float)
    far = {name: abs(images[name] - images[TORCH]) for name in networks if name != TORCH}
    return [(name, f"{values.mean():.3f}", int(values.max())) for name, values in far.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="faces-32", help="a bundled model (default %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="batch sizes (default 1 4 16 64)")
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--timesteps", type=int, default=20, help="of the run (default %(default)s)")
    args = parser.parse_args()

    folder = ROOT / "checkpoints" / args.checkpoint
    policy = DiffusionPolicy.from_pretrained(folder).eval()
    networks = make_networks(policy, folder)
    print(f"{args.checkpoint}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"openvino {load_openvino().__version__.split('-')[0]}\n")
    rows = []
    for batch in args.batch:
        inputs = example_inputs(policy.model, batch)
        seconds = time_alternating({name: calls(network, inputs) for name, network in networks.items()}, args.rounds)
        rows += [(batch, name, 1000 * took / CALLS, seconds[TORCH] / took) for name, took in seconds.items()]
    print_table(("batch", "backend", "ms per call", "times as fast"), rows)
    print(f"\n{IMAGES} images in {args.timesteps} steps, difference from PyTorch's in gray levels:\n")
    print_table(("backend", "mean", "largest"), drift(policy, networks, args.timesteps))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
