"""Find, download and publish models on the Hugging Face Hub.

Only the files in FILES are downloaded from a repository, by their exact names. The config is checked before the weights
are requested, and it bounds their size. Files enter the cache only after the model has been checked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, constants, hf_hub_url
from huggingface_hub import try_to_load_from_cache as try_to_load_from_cache
from torch import nn

from dp.checkpoints import folder as checkpoint
from dp.checkpoints import schema
from dp.checkpoints.model_card import LIBRARY, TASK, model_card
from dp.checkpoints.schema import CheckpointError
from dp.hub.client import (
    MIN_BYTES_PER_S,
    TIMEOUT_S,
    HubConnectionError,
    HubError,
    Progress,
    api_for,
    download_file,
    headers_for,
    headers_of,
    run_with_timeout,
    translate_errors,
)
from dp.system.validation import quote

FILES = {"config.json": checkpoint.MAX_CONFIG, "README.md": 1_000_000, "model.safetensors": 8_000_000_000}  # bytes
MAX_HEADER = 1_000_000  # bytes of model.safetensors in addition to the weights
MAX_LISTED = 50
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve(source: str | Path, *, token: str | bool | None = None, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: `source` if it is a path, or the result of `download` if there is no such
    folder and it reads "user/name".
    """
    if os.path.exists(source) or not isinstance(source, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return Path(source)
    try:
        return download(source, token=token, revision=revision)
    except HubError as error:
        raise HubError(f"there is no local folder {quote(source)}, and on the Hub: {error}") from None


def list_models(owner: str | None = None, *, token: str | bool | None = None) -> list[str]:
    """Return the names "user/name" of the models on the Hub whose cards state that they were made with this library,
    most downloaded first: at most 50, from all owners or one. token: as in `download`. Raises HubError.
    """
    headers = headers_of(token)
    with translate_errors("the list of models", headers):
        query = {"filter": [LIBRARY, TASK], "author": owner, "sort": "downloads", "limit": MAX_LISTED}
        return [
            str(info.id)
            for info in run_with_timeout(2 * TIMEOUT_S, lambda: list(api_for(headers).list_models(**query)))
        ]


def download(
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    progress: Progress = lambda received, size: None,
) -> Path:
    """Return the checkpoint folder of "user/name" in the Hugging Face cache. The files are downloaded unless they are
    there already.

    token: a string, or None for the token that this machine is logged in with, or False or "" for no token. revision: a
    branch, tag or commit. If the Hub does not respond and token is None, an earlier download is returned. progress:
    called with the received and total bytes of each file, before the download and during it; an exception that it
    raises aborts the download. Raises HubError.
    """
    headers = headers_for(repo_id, token)
    if revision is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", revision, re.ASCII):
        raise HubError(f"{quote(revision)} is not a valid revision; enter a branch, a tag or a commit")
    try:
        with translate_errors(repo_id, headers):
            options = {"revision": revision, "files_metadata": True, "timeout": TIMEOUT_S}
            info = run_with_timeout(TIMEOUT_S + 2, lambda: api_for(headers).model_info(repo_id, **options))
            if not re.fullmatch(r"[0-9a-f]{40}", info.sha):
                raise ValueError("no commit")
            files = {file.rfilename: file for file in info.siblings}
    except HubConnectionError:
        if token is None and (folder := _cached(repo_id, revision or constants.DEFAULT_REVISION)):
            return folder
        raise
    with translate_errors(repo_id, headers):
        folder = _cached(repo_id, info.sha) or _download_commit(repo_id, info.sha, files, headers, progress)
        if revision != info.sha:  # so that it is found later without a response from the Hub
            reference = folder.parents[1] / "refs" / (revision or constants.DEFAULT_REVISION)
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(info.sha, encoding="utf-8")
    return folder


def delete_cached(repo_id: str) -> None:
    """Delete all files of this model from the cache."""
    shutil.rmtree(_cache_of(repo_id), ignore_errors=True)


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool = False,
    samples: bytes | Path | None = None,
    facts: Mapping[str, str] | None = None,
    **card: Any,
) -> str:
    """Publish a checkpoint folder as "user/name" in one commit, and return its address.

    token: as in `download`; it needs write access. private: whether only the owner can see the model. samples: a PNG
    for the card, or its path. facts: more rows of the card's table. card: step, dataset and license, which override
    those of the folder. An existing card is replaced; the repository's history keeps it. Raises HubError, or
    CheckpointError for a damaged model.
    """
    headers = headers_for(repo_id, token)
    if "authorization" not in headers:
        raise HubError(
            f"publishing needs a token with write access; create one at {constants.ENDPOINT}/settings/tokens"
        )
    image = Path(samples).read_bytes() if isinstance(samples, (str, Path)) else samples
    if image is not None and not image.startswith(b"\x89PNG\r\n\x1a\n"):
        raise HubError("the image of samples must be a PNG")
    folder = Path(folder)
    network, config = checkpoint.inspect(folder)
    schema.check_config(config := config | card, str(folder))
    text = model_card(config, _count(network), repo_id, facts, "samples.png" if image else "")
    contents = {"README.md": text.encode(), "config.json": (json.dumps(config, indent=2) + "\n").encode()}
    contents |= {"model.safetensors": folder / "model.safetensors"} | ({"samples.png": image} if image else {})
    size = (folder / "model.safetensors").stat().st_size
    with translate_errors(repo_id, headers):
        api = api_for(headers)
        run_with_timeout(2 * TIMEOUT_S, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        if private and not run_with_timeout(TIMEOUT_S, lambda: api.model_info(repo_id, timeout=TIMEOUT_S)).private:
            raise HubError(f"{repo_id} already exists and is public, so it cannot be private; choose another name")
        additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
        commit = {"operations": additions, "commit_message": f"A model of {config.get('step', 0):,} steps"}
        run_with_timeout(6 * TIMEOUT_S + size / MIN_BYTES_PER_S, lambda: api.create_commit(repo_id, **commit))
    return f"{constants.ENDPOINT}/{repo_id}"


# ----------------------------------------------------------------------------
# Downloading


def _cache_of(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}")


def _cached(repo_id: str, revision: str) -> Path | None:
    names, cache = ("config.json", "model.safetensors"), constants.HF_HUB_CACHE
    paths = [try_to_load_from_cache(repo_id, name, cache, revision) for name in names]
    return Path(paths[0]).parent if all(isinstance(path, str) for path in paths) else None


def _download_commit(
    repo_id: str, commit: str, files: Mapping[str, Any], headers: dict[str, str], progress: Progress
) -> Path:
    """Download `commit` to a temporary folder, and move it to the cache if it is a valid model."""
    if missing := {"config.json", "model.safetensors"} - files.keys():
        pickles = any(name.endswith(PICKLES) for name in files)
        why = "; it has only pickle files, which can run code and are never loaded" if pickles else ""
        raise HubError(f"{repo_id} is not a model that dp can load: it has no {min(missing)}{why}")
    home = _cache_of(repo_id)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetching-") as aside:
        try:
            for name, most in FILES.items():
                if name == "model.safetensors":
                    config = checkpoint.parse_config(Path(aside, "config.json"))
                    most = min(most, 8 * _count(checkpoint.build(config, aside, device="meta")) + MAX_HEADER)
                if name in files:
                    size = files[name].size
                    if not isinstance(size, int) or not 0 <= size <= most:
                        raise HubError(
                            f"{repo_id} is rejected: its {name} has {quote(size)} bytes, the limit is {most:,}"
                        )
                    digest = files[name].lfs.sha256 if files[name].lfs else None
                    url = hf_hub_url(repo_id, name, revision=commit)
                    download_file(url, headers, Path(aside, name), size, digest, progress)
            checkpoint.inspect(Path(aside))
        except CheckpointError as error:
            why = str(error).removeprefix(f"{aside}: ").replace(aside, repo_id)
            raise HubError(f"{repo_id} is not a model that dp can load: {why}") from None
        folder = home / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        for path in Path(aside).iterdir():
            os.replace(path, folder / path.name)
    return folder


def _count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.state_dict().values())
