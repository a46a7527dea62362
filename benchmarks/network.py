"""Compare this library's RIN with rin-pytorch's at the same width, depth, latents, heads and patch size: a forward
pass, a training step, and the sampling of 16 images in 50 DDIM steps.

    pip install -r benchmarks/requirements.txt
    python benchmarks/network.py --batch 1 8 64

The two networks differ: rin-pytorch adds self-attention and a convolution over the patches. The script therefore also
prints parameters and FLOPs, and the last column gives each network's FLOP/s in percent of the device's matmul rate.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from measure import matmul_rate, print_table, time_alternating
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone without installing

from dp import RIN, DiffusionPolicy
from dp.system.device import best_device

OURS, THEIRS = "dp", "rin-pytorch"
HEADS, DIM_HEAD = 4, 32  # rin-pytorch's defaults


def make_networks(args: argparse.Namespace) -> dict[str, nn.Module]:
    import rin_pytorch

    shared = {"dim": args.dim, "image_size": args.image_size, "patch_size": args.patch_size, "depth": args.depth}
    shared |= {"num_latents": args.latents, "heads": HEADS, "dim_head": DIM_HEAD}
    torch.manual_seed(0)
    return {OURS: RIN(**shared).to(args.device), THEIRS: rin_pytorch.RIN(**shared).to(args.device)}


def forward(model: nn.Module, x: torch.Tensor, amp: bool) -> Callable[[], None]:
    time = torch.rand(len(x), device=x.device)

    def call() -> None:
        with torch.no_grad(), autocast(x, amp):
            model(x, time)

    return call


def training_step(model: nn.Module, x: torch.Tensor, amp: bool) -> Callable[[], None]:
    time, optimizer = torch.rand(len(x), device=x.device), torch.optim.AdamW(model.parameters(), fused=True)
    # A random target: with zeros, gradients would shrink to denormal numbers, which are very slow on a CPU.
    target = torch.randn_like(x)

    def call() -> None:
        with autocast(x, amp):
            loss = (model(x, time) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def autocast(x: torch.Tensor, amp: bool) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=amp)


def flops(model: nn.Module, x: torch.Tensor) -> int:
    """Return the FLOPs of a forward pass. Attention runs unfused, because the counter misses part of fused kernels."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, torch.rand(len(x), device=x.device))
    return counter.get_total_flops()


def converted(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the networks as OpenVINO computes them."""
    from dp.serving.backends import OpenVINONetwork, write

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            network.num_classes = 0  # rin-pytorch's has no such attribute, and none
            file = Path(folder) / f"{name}.xml"
            write(network.eval(), file)
            found[name] = OpenVINONetwork(file, network)
    return found


def sampling(networks: dict[str, nn.Module], batch: int, timesteps: int) -> dict[str, Callable[[], object]]:
    import rin_pytorch.rin_pytorch as theirs

    policy = DiffusionPolicy(networks[OURS], timesteps=timesteps)
    network = networks[THEIRS]
    diffusion = theirs.GaussianDiffusion(getattr(network, "reference", network), timesteps=timesteps)
    diffusion.model = network  # the constructor takes nothing but its own network

    def their_sample() -> None:
        with mock.patch.object(theirs, "tqdm", lambda pairs, **_: pairs):  # its progress bar would add to the time
            diffusion.sample(batch)

    return {OURS: lambda: policy.sample(batch, seed=0), THEIRS: their_sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(dim=256, image_size=64, patch_size=8, depth=4, latents=64, rounds=7).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value, help=f"(default {value})")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], help="batch sizes (default 1 8 64)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (compiling takes minutes)")
    parser.add_argument("--openvino", action="store_true", help="also sample with OpenVINO, on a CPU")
    parser.add_argument("--only-sampling", action="store_true", help="do not time single passes")
    args = parser.parse_args()
    args.device = str(best_device())

    networks = make_networks(args)
    parameters = {name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in networks.items()}
    rates = {amp: matmul_rate(args.device, torch.bfloat16 if amp else torch.float32) for amp in (False, True)}
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; matmul: ", end="")
    print(f"{rates[False] / 1e9:.0f} GFLOP/s in float32, {rates[True] / 1e9:.0f} in bfloat16")
    print(
        f"dim {args.dim}, {args.depth} blocks, {args.latents} latents, {args.image_size} px, patch {args.patch_size}\n"
    )

    x = torch.randn(1, 3, args.image_size, args.image_size, device=args.device)
    forward_flops = {name: flops(network, x) for name, network in networks.items()}
    rows = []
    kinds = (("forward", forward, 1), ("training step", training_step, 3))  # the backward pass counts as two
    for kind, make, passes in () if args.only_sampling else kinds:
        for amp, batch in itertools.product((False, True), args.batch):
            x = torch.randn(batch, 3, args.image_size, args.image_size, device=args.device)
            modes = {"eager": networks}
            if args.compile:
                modes["compiled"] = {name: torch.compile(network) for name, network in networks.items()}
            for mode, candidates in modes.items():
                calls = {name: make(network, x, amp) for name, network in candidates.items()}
                seconds = time_alternating(calls, args.rounds)
                for name, took in seconds.items():
                    flops_per_s = forward_flops[name] * passes * batch / took
                    setting = (kind, "bfloat16" if amp else "float32", mode, batch, name)
                    rows.append((*setting, batch / took, seconds[THEIRS] / took, f"{flops_per_s / rates[amp]:.0%}"))
    print_table(("pass", "precision", "mode", "batch", "network", "images/s", "ratio", "of matmul rate"), rows)
    print()
    sizes = [(name, parameters[name], forward_flops[name] / 1e6) for name in networks]
    print_table(("network", "M parameters", "MFLOP per image, forward"), sizes)

    print("\n16 images in 50 DDIM steps, float32:\n")
    modes = {"eager": sampling(networks, 16, 50)}
    if args.openvino:
        modes["OpenVINO"] = sampling(converted(networks), 16, 50)
    rows = times_of(modes, args.rounds)
    if args.compile:
        for network in networks.values():
            network.compile()
        rows += times_of({"compiled": sampling(networks, 16, 50)}, args.rounds)
    print_table(("mode", "library", "seconds", "ratio"), rows)


def times_of(modes: dict[str, dict[str, Callable[[], object]]], rounds: int) -> list[tuple]:
    """Time the libraries' sampling in all modes, in turns. The ratio is to rin-pytorch in the first mode."""
    calls = {(mode, name): call for mode, libraries in modes.items() for name, call in libraries.items()}
    seconds = time_alternating(calls, max(3, rounds // 2))
    reference = seconds[next(iter(modes)), THEIRS]
    return [(*key, took, reference / took) for key, took in seconds.items()]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
