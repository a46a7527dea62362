"""A run folder as a private repository on the Hub, under the same names: what goes up to it, and what comes back.

Two machines share a run by it. A commit is whole or not there, so nobody sees half a checkpoint. Of what lies there,
only what a run folder may hold is ever fetched, and no more bytes of it than that may have.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError

from dp.hub.client import PATIENCE, SLOWEST, HubError, download, within
from dp.training.run_folder import ERROR_CHARACTERS, STATES, RunFolder

COMES_BACK = {  # and the bytes that each may have
    r"status\.json": 1_000_000,
    r"metrics\.jsonl": 500_000_000,
    r"log\.txt": 100_000_000,
    r"samples/\d{6,12}\.png": 200_000_000,
    r"checkpoints/\d{6,12}/(config\.json|README\.md)": 1_000_000,
    r"checkpoints/\d{6,12}/model\.safetensors": 8_000_000_000,
    r"checkpoints/\d{6,12}/training-state/state\.json": 1_000_000,
    r"checkpoints/\d{6,12}/training-state/state\.safetensors": 32_000_000_000,
}
GOES_UP = (*list(COMES_BACK)[1:], r"config\.json", r"dataset/\w[\w.-]*")  # status.json is written by who sends it
GROWS = ("metrics.jsonl", "log.txt")
STATE = "training-state"
NUMBER = (int, float)
KINDS = {"step": int, "total": int, "loss": NUMBER, "images_per_s": NUMBER, "started": NUMBER, "processes": int}
KINDS |= {"device": str, "error": str, "message": str}  # of the facts that come back


class Listing(NamedTuple):
    """Return the files of the repository at a commit: name -> (bytes, sha256 or None)."""

    commit: str
    files: dict[str, tuple[int, str | None]]


def listing(api: HfApi, repo: str) -> Listing | None:
    """None where there is no such repository, or none to be seen with this token."""
    info = None
    with suppress(RepositoryNotFoundError):
        info = within(3 * PATIENCE, lambda: api.model_info(repo, files_metadata=True, timeout=PATIENCE))
    if info is None:
        return None
    files = {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings}
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha) or not all(isinstance(size, int) for size, _ in files.values()):
        raise ValueError("no listing")
    return Listing(info.sha, files)


def send(
    api: HfApi, repo: str, run: RunFolder, there: Listing, more: Mapping[str, bytes], gone: Iterable[str], note: str
) -> None:
    """One commit with what the run folder has that is not there, and with `more` files; without those `gone`, and
    without what the run folder has cleared away. What resuming needs goes up for the newest checkpoint only.
    """
    ours = {path.relative_to(run.path).as_posix(): path for path in run.path.rglob("*") if path.is_file()}
    states = [name for name in ours if name.endswith(f"/{STATE}/state.json")]
    old = {str(Path(name).parent.as_posix()) for name in sorted(states, key=_milestone)[:-1]}
    ours = {
        name: path.read_bytes() if name in GROWS else path  # what grows while it is sent would not be whole
        for name, path in ours.items()
        if any(re.fullmatch(rule, name) for rule in GOES_UP) and name.rpartition("/")[0] not in old
    }
    sizes = {name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in ours.items()}
    new = {name: ours[name] for name in ours if there.files.get(name, (None,))[0] != sizes[name]} | dict(more)
    gone = {*gone, *(name for name in there.files if name.startswith("checkpoints/") and name not in ours)}
    commit(api, repo, new, gone & there.files.keys(), note)


def commit(api: HfApi, repo: str, new: Mapping[str, bytes | Path], gone: Iterable[str], note: str) -> None:
    operations: list[Any] = [CommitOperationAdd(name, what) for name, what in new.items()]
    operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(gone)]
    size = sum(operation.upload_info.size for operation in operations[: len(new)])
    within(6 * PATIENCE + size / SLOWEST, lambda: api.create_commit(repo, operations, commit_message=note))


def status_of(repo: str, headers: dict[str, str], there: Listing, launch: str) -> dict[str, Any]:
    """What the Job of that launch has last said of its run: `state` and some of KINDS; {} before it said anything."""
    if "status.json" not in there.files:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        _fetch(repo, headers, there, "status.json", Path(folder, "status.json"))
        said = json.loads(Path(folder, "status.json").read_text(encoding="utf-8"))
    job = said["remote"]
    if job.get("launch") != launch:
        return {}
    kinds = KINDS.items()
    facts = {key: said[key] for key, kind in kinds if isinstance(said.get(key), kind) and said[key] is not True}
    words = {key: text[-ERROR_CHARACTERS:] for key, text in facts.items() if isinstance(text, str)}
    return facts | words | {"state": STATES[STATES.index(said["state"])], "silent_s": max(0.0, float(job["silent_s"]))}


def bring(repo: str, headers: dict[str, str], run: RunFolder, there: Listing, is_over: bool) -> None:
    """Fetch what the run folder does not have yet, each file and checkpoint whole or not at all; when the run is over,
    what resuming needs, too.
    """
    known = {name for name in there.files if any(re.fullmatch(rule, name) for rule in COMES_BACK)}
    for name in sorted(known):
        path = run.path / name
        has_news = name in GROWS and not (path.exists() and path.stat().st_size == there.files[name][0])
        if has_news or (name.startswith("samples/") and not path.exists()):
            with run.replacing(path) as aside:
                _fetch(repo, headers, there, name, aside)
    milestones = sorted({_milestone(name) for name in known if name.endswith("/model.safetensors")})
    for milestone in milestones:
        folder = run.checkpoint(milestone)
        prefix = f"checkpoints/{folder.name}/"
        parts = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
        if not folder.exists() and "config.json" in parts:
            _fetch_folder(repo, headers, run, there, folder, prefix, [part for part in parts if "/" not in part])
        state = [part for part in parts if part.startswith(f"{STATE}/")]
        if is_over and folder.exists() and len(state) == 2 and not (folder / STATE).exists():
            names = [part.removeprefix(f"{STATE}/") for part in state]
            _fetch_folder(repo, headers, run, there, folder / STATE, f"{prefix}{STATE}/", names)


def _fetch_folder(
    repo: str, headers: dict[str, str], run: RunFolder, there: Listing, folder: Path, prefix: str, names: list[str]
) -> None:
    with run.replacing(folder) as aside:
        aside.mkdir()
        for name in names:
            _fetch(repo, headers, there, prefix + name, aside / name)


def _fetch(repo: str, headers: dict[str, str], there: Listing, name: str, target: Path) -> None:
    size, sha256 = there.files[name]
    most = next(most for rule, most in COMES_BACK.items() if re.fullmatch(rule, name))
    if not 0 <= size <= most:
        raise HubError(f"{repo} is refused: its {name} has {size:,} bytes, of {most:,} allowed")
    url = hf_hub_url(repo, name, revision=there.commit, endpoint=constants.ENDPOINT)
    download(url, headers, target, size, sha256)


def _milestone(name: str) -> int:
    return int(name.split("/")[1])
