"""Keep a run folder in sync with a private repository on the Hub, which holds the same files under the same names.

Both machines of a remote run exchange files through it. Commits are atomic, so neither sees half a checkpoint. The
content of the repository is not trusted: only files that a run folder may contain are downloaded, up to a size limit.
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

from dp.hub.client import MIN_BYTES_PER_S, TIMEOUT_S, HubError, download_file, run_with_timeout
from dp.training.run_folder import MAX_ERROR_CHARACTERS, RunFolder
from dp.training.status import parse_status

DOWNLOADABLE = {  # pattern -> largest size in bytes
    r"status\.json": 1_000_000,
    r"metrics\.jsonl": 500_000_000,
    r"log\.txt": 100_000_000,
    r"samples/\d{6,12}\.png": 200_000_000,
    r"checkpoints/\d{6,12}/(config\.json|README\.md)": 1_000_000,
    r"checkpoints/\d{6,12}/model\.safetensors": 8_000_000_000,
    r"checkpoints/\d{6,12}/training-state/state\.json": 1_000_000,
    r"checkpoints/\d{6,12}/training-state/state\.safetensors": 32_000_000_000,
}
# status.json is uploaded by the job's worker alone, with fields of its own.
UPLOADABLE = (*list(DOWNLOADABLE)[1:], r"config\.json", r"dataset/\w[\w.-]*")
UPLOADABLE += (r"start/(config\.json|model\.safetensors)",)
APPEND_ONLY = ("metrics.jsonl", "log.txt")
TRAINING_STATE = "training-state"
NUMBER = (int, float)
STATUS_FIELDS: dict[str, Any] = {"step": int, "total": int, "loss": NUMBER, "images_per_s": NUMBER, "started": NUMBER}
STATUS_FIELDS |= {"processes": int, "device": str, "error": str, "message": str}  # accepted from the job


class Listing(NamedTuple):
    """The files of the repository at a commit: name -> (size in bytes, sha256 or None)."""

    commit: str
    files: dict[str, tuple[int, str | None]]


def list_files(api: HfApi, repo: str) -> Listing | None:
    """Return the files of a repository, or None if it does not exist or is not visible with this token."""
    info = None
    with suppress(RepositoryNotFoundError):
        info = run_with_timeout(3 * TIMEOUT_S, lambda: api.model_info(repo, files_metadata=True, timeout=TIMEOUT_S))
    if info is None:
        return None
    files = {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings}
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha) or not all(isinstance(size, int) for size, _ in files.values()):
        raise ValueError("the Hub sent a malformed list of files")
    return Listing(info.sha, files)


def upload_changes(
    api: HfApi,
    repo: str,
    run: RunFolder,
    listing: Listing,
    extra: Mapping[str, bytes],
    deleted: Iterable[str],
    message: str,
) -> None:
    """Commit the files of the run folder that differ in size from those in `listing`, and the `extra` files; remove
    the `deleted` files and the checkpoints that the run folder no longer has. Training states other than the newest
    are not uploaded.
    """
    local = {path.relative_to(run.path).as_posix(): path for path in run.path.rglob("*") if path.is_file()}
    states = [name for name in local if name.endswith(f"/{TRAINING_STATE}/state.json")]
    outdated = {Path(name).parent.as_posix() for name in sorted(states, key=_step_of)[:-1]}
    contents = {
        name: path.read_bytes() if name in APPEND_ONLY else path  # a file must not grow while it is uploaded
        for name, path in local.items()
        if any(re.fullmatch(rule, name) for rule in UPLOADABLE) and name.rpartition("/")[0] not in outdated
    }
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in contents.items()}
    changed = {name: file for name, file in contents.items() if listing.files.get(name, (None,))[0] != sizes[name]}
    removed = (name for name in listing.files if name.startswith("checkpoints/") and name not in contents)
    commit(api, repo, changed | dict(extra), {*deleted, *removed} & listing.files.keys(), message)


def commit(api: HfApi, repo: str, files: Mapping[str, bytes | Path], deleted: Iterable[str], message: str) -> None:
    """Add and delete files in one commit."""
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(deleted)]
    size = sum(operation.upload_info.size for operation in operations[: len(files)])
    seconds = 6 * TIMEOUT_S + size / MIN_BYTES_PER_S
    run_with_timeout(seconds, lambda: api.create_commit(repo, operations, commit_message=message))


def read_status(repo: str, headers: dict[str, str], listing: Listing, launch: str) -> dict[str, Any]:
    """Return the status that the job `launch` reported last, or {} if it has not reported yet: `state`, `silent_s`
    (seconds since the heartbeat) and those STATUS_FIELDS that have the right type.
    """
    if "status.json" not in listing.files:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        _fetch(repo, headers, listing, "status.json", Path(folder, "status.json"))
        status = json.loads(Path(folder, "status.json").read_text(encoding="utf-8"))
    remote = status["remote"]
    if remote.get("launch") != launch:
        return {}
    # True is an int, too.
    kinds = STATUS_FIELDS.items()
    fields = {key: status[key] for key, kind in kinds if isinstance(status.get(key), kind) and status[key] is not True}
    texts = {key: text[-MAX_ERROR_CHARACTERS:] for key, text in fields.items() if isinstance(text, str)}
    state, silent_s = parse_status(status)["state"], max(0.0, float(remote["silent_s"]))
    return fields | texts | {"state": state, "silent_s": silent_s}


def download_changes(repo: str, headers: dict[str, str], run: RunFolder, listing: Listing, is_over: bool) -> None:
    """Download what the run folder lacks, each file and checkpoint completely or not at all. Training states are
    downloaded only when the job `is_over`.
    """
    known = {name for name in listing.files if any(re.fullmatch(rule, name) for rule in DOWNLOADABLE)}
    for name in sorted(known):
        path = run.path / name
        has_grown = name in APPEND_ONLY and not (path.exists() and path.stat().st_size == listing.files[name][0])
        if has_grown or (name.startswith("samples/") and not path.exists()):
            with run.replacing(path) as temporary:
                _fetch(repo, headers, listing, name, temporary)
    for step in sorted({_step_of(name) for name in known if name.endswith("/model.safetensors")}):
        folder = run.checkpoint(step)
        prefix = f"checkpoints/{folder.name}/"
        names = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
        if not folder.exists() and "config.json" in names:
            _fetch_folder(repo, headers, run, listing, folder, prefix, [name for name in names if "/" not in name])
        state = [name for name in names if name.startswith(f"{TRAINING_STATE}/")]
        if is_over and folder.exists() and len(state) == 2 and not (folder / TRAINING_STATE).exists():
            files = [name.removeprefix(f"{TRAINING_STATE}/") for name in state]
            _fetch_folder(repo, headers, run, listing, folder / TRAINING_STATE, f"{prefix}{TRAINING_STATE}/", files)


def _fetch_folder(
    repo: str, headers: dict[str, str], run: RunFolder, listing: Listing, folder: Path, prefix: str, names: list[str]
) -> None:
    with run.replacing(folder) as temporary:
        temporary.mkdir()
        for name in names:
            _fetch(repo, headers, listing, prefix + name, temporary / name)


def _fetch(repo: str, headers: dict[str, str], listing: Listing, name: str, target: Path) -> None:
    size, sha256 = listing.files[name]
    limit = next(limit for rule, limit in DOWNLOADABLE.items() if re.fullmatch(rule, name))
    if not 0 <= size <= limit:
        raise HubError(f"{repo} was rejected: {name} has {size:,} bytes, more than the {limit:,} allowed")
    url = hf_hub_url(repo, name, revision=listing.commit, endpoint=constants.ENDPOINT)
    download_file(url, headers, target, size, sha256)


def _step_of(name: str) -> int:
    return int(name.split("/")[1])
