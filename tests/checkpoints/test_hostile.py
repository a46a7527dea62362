"""Twenty kinds of hostile checkpoint folders. Loading or listing one raises or shows a readable error, allocates no
more memory than the size of the folder, and runs no code.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import randomize
from safetensors.torch import load_file, save_file
from saving import save_policy

from dp import RIN, DiffusionPolicy
from dp.checkpoints import catalog
from dp.checkpoints.schema import CheckpointError

resource = pytest.importorskip("resource", reason="this system does not tell how much memory was used")

TINY = dict(dim=8, image_size=8, patch_size=4, depth=1, latent_self_attn_depth=1)
TINY |= dict(num_latents=4, heads=1, dim_head=8, conv_blocks=1)
LARGEST = 60e6  # bytes that a refusal may take, beside what its folder holds: the largest ask for terabytes

# Python says when a pickle wants a name looked up, or a program is started. Once set, this cannot be taken away.
WATCHED = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "exec"}
seen: list[str] = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in WATCHED else None)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"echo ran > '{self.mark}'",)


def config(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return edit


def text(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_bytes(content)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def header(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Replace the header of the weights file, and keep its data."""

    def edit(folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        fields = json.loads(raw[8 : 8 + length])
        change(fields)
        new = json.dumps(fields).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return edit


def raw_weights(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def sparse(name: str, size: int) -> Callable[[Path], object]:
    """Create a sparse file of this size, which takes no disk space."""
    return lambda folder: os.truncate(folder / name, size)


def linked(name: str, target: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return edit


def pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def pickled(folder: Path) -> None:
    """Write pickles under every file name that some library loads automatically."""
    bomb = pickle.dumps(Bomb(folder.parent / "mark"))
    names = ("pytorch_model.bin", "model.pt", "custom_checkpoint_0.pkl", "optimizer.bin", "model.safetensors")
    for name in names:
        (folder / name).write_bytes(bomb)


def first(said: dict) -> dict:
    return said[min(name for name in said if name != "__metadata__")]


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickles under every name": (pickled, "model.safetensors cannot be read"),
    "a torch file for weights": (
        lambda folder: torch.save({"latents": Bomb(folder.parent / "mark")}, folder / "model.safetensors"),
        "model.safetensors cannot be read",
    ),
    "a config that names code": (
        config(lambda c: c.update(auto_map={"AutoModel": "evil.Model"})),
        "unknown field 'auto_map'",
    ),
    "a network by its import path": (config(lambda c: c["network"].update(type="os.system")), "unknown network"),
    "a keyword that is an attribute": (
        config(lambda c: c["policy"].update(schedule_kwargs={"__class__": "x"})),
        "__class__",
    ),
    "a config of terabytes": (sparse("config.json", 2**42), "larger than 1,000,000 bytes"),
    "a config without end": (linked("config.json", "/dev/zero"), "config.json is missing"),
    "a config that never comes": (pipe, "config.json is missing"),
    "a config from elsewhere": (linked("config.json", "/etc/passwd"), "not valid JSON"),
    "brackets without end": (text(b"[" * 90_000), "config.json"),
    "a number without end": (text(b'{"step": ' + b"9" * 90_000 + b"}"), "config.json"),
    "a network of a trillion weights": (
        config(lambda c: c["network"].update(dim=4096, dim_latent=4096, depth=64)),
        "more than 2,000,000,000 parameters",
    ),
    "a picture of terabytes": (
        config(lambda c: c["network"].update(image_size=2048, patch_size=1, num_latents=8192)),
        "do not match|more than 2,000,000,000 parameters",
    ),
    "weights of terabytes, of nothing": (sparse("model.safetensors", 2**42), "model.safetensors cannot be read"),
    "a header of gigabytes": (
        raw_weights(struct.pack("<Q", 2**33) + b"{" * 1000),
        "model.safetensors cannot be read",
    ),
    "a tensor of terabytes": (
        header(lambda said: first(said).update(shape=[2**40])),
        "model.safetensors cannot be read",
    ),
    "a size past what numbers hold": (
        header(lambda said: first(said).update(shape=[2**63, 2**63])),
        "model.safetensors cannot be read",
    ),
    "tensors beyond the file": (
        header(lambda said: first(said).update(data_offsets=[0, 2**40])),
        "model.safetensors cannot be read",
    ),
    "tensors over one another": (
        header(
            lambda said: [value.update(data_offsets=[0, 4]) for key, value in said.items() if key != "__metadata__"]
        ),
        "model.safetensors cannot be read",
    ),
    "numbers that are no weights": (
        weights(lambda w: w.update({name: value.to(torch.complex64) for name, value in w.items()})),
        "has dtype C64; supported",
    ),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    save_policy(DiffusionPolicy(randomize(RIN(**TINY))), tmp_path / "mine")
    DiffusionPolicy.from_pretrained(tmp_path / "mine")  # it is whole, and what loading brings into memory is there
    return tmp_path / "mine"


def peak() -> float:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_there_are_twenty_kinds():
    assert len(KINDS) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_folder_is_rejected_without_running_code_or_allocating_memory(folder, kind):
    damage, says = KINDS[kind]
    try:
        damage(folder)
    except (OSError, AttributeError) as error:
        pytest.skip(f"this system cannot make it: {error}")
    before, start = peak(), time.monotonic()
    seen.clear()
    with pytest.raises(CheckpointError, match=says) as caught:
        DiffusionPolicy.from_pretrained(folder)
    [entry] = catalog.list_checkpoints(folder.parent)
    assert entry.config is None and entry.problem == str(caught.value)
    assert len(str(caught.value)) < 600 and "root:" not in str(caught.value)
    assert peak() - before < LARGEST
    assert time.monotonic() - start < 20
    assert not (folder.parent / "mark").exists()
    assert not set(seen) & (WATCHED - {"exec"})


def test_unpickling_the_bomb_runs_code(tmp_path):
    """The tests above are meaningful only if loading these pickles runs code."""
    seen.clear()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists() and {"os.system", "pickle.find_class"} <= set(seen)
