"""`python -m dp publish-space user/name`: publish this repository as a Hugging Face Space, or update that Space. The
token comes from the machine's login (`hf auth login`) or HF_TOKEN; it is passed with each call and stored nowhere.

Only the files listed here are uploaded, so images, runs and notes in the working directory stay private. A Space builds
from requirements.txt alone, so that of a Space on a CPU also has the lines of requirements-cpu.txt.

`publish_static` publishes a page that runs in its visitors' browsers (`python -m dp export-web`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, SpaceHardware
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from dp.hub.client import TIMEOUT_S, HubError, api_for, headers_for, token_in, translate_errors
from dp.system import stdio
from dp.system.validation import message_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("dp", "checkpoints", "docs", "tests", "benchmarks", ".ci")
REQUIREMENTS, CPU_REQUIREMENTS = "requirements.txt", "requirements-cpu.txt"
FILES = ("app.py", "README.md", "LICENSE", REQUIREMENTS, CPU_REQUIREMENTS, "requirements-web.txt")
FILES += ("pyproject.toml", ".gitignore", ".gitattributes")
WANTED = [*FILES, *(f"{folder}/*" for folder in FOLDERS)]
CPU_BASIC = SpaceHardware.CPU_BASIC.value  # of a new Space, if no other is named
UNWANTED = ["*__pycache__*", "*.pyi", "*/.*"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dp publish-space",
        description="Publish this repository as a Hugging Face Space, or update that Space.",
        epilog="Log in first with `hf auth login`, or set HF_TOKEN to a token with write access.",
    )
    add = parser.add_argument
    add("space", metavar="user/name", help="the Space; it is created if it does not exist")
    add("--private", action="store_true", help="create a private Space, which only you can see")
    hardware = [flavour.value for flavour in SpaceHardware]
    words = "hardware of a new Space instead of cpu-basic; some kinds are billed by the hour: %(choices)s"
    add("--hardware", choices=hardware, metavar="NAME", help=words)
    add(
        "--dry-run",
        action="store_true",
        help="only list the files that would be uploaded, with their sizes; needs no network",
    )
    stdio.protect()
    args = parser.parse_args()
    try:
        headers = headers_for(args.space, None)
        if args.dry_run:
            sizes = {path: (ROOT / path).stat().st_size for path in files()}
            sizes[REQUIREMENTS] = len(requirements(args.hardware or CPU_BASIC))
            print("\n".join(f"{size:>12,}  {path}" for path, size in sizes.items()))
            print(
                f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files would be uploaded to the Space {args.space}"
            )
        else:
            publish(args.space, headers, args.private, args.hardware)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130)  # the exit code of shells for an interrupt


def files() -> list[str]:
    """Return the paths of the files to upload, relative to the repository."""
    paths = sorted(path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*"))
    paths = [name for name in [*FILES, *paths] if (ROOT / name).is_file()]
    return list(filter_repo_objects(paths, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def requirements(hardware: str) -> bytes:
    """Return the requirements.txt of a Space on that hardware."""
    own, extra = ((ROOT / name) for name in (REQUIREMENTS, CPU_REQUIREMENTS))
    return own.read_bytes() + (extra.read_bytes() if hardware.startswith("cpu") and extra.exists() else b"")


def hardware_of(api: HfApi, space: str) -> str | None:
    """Return the hardware of a Space, or None if the Hub does not say."""
    with suppress(HfHubHTTPError):
        runtime = api.get_space_runtime(space)
        return runtime.requested_hardware or runtime.hardware
    return None


def publish(space: str, headers: Mapping[str, str], private: bool, hardware: str | None) -> None:
    check_token(headers)
    kind = {"repo_type": "space", "space_sdk": "gradio", "space_hardware": hardware}
    message = "Watch a diffusion model at work"
    with translate_errors(space, headers), TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        api = api_for(headers)
        api.create_repo(space, private=private or None, exist_ok=True, **kind)
        for name in files():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, Path(folder) / name)
        of_space = requirements(hardware_of(api, space) or hardware or CPU_BASIC)
        (Path(folder) / REQUIREMENTS).write_bytes(of_space)
        api.upload_folder(repo_id=space, folder_path=folder, repo_type="space", commit_message=message)
    print(f"{api.endpoint}/spaces/{space} is being built, which takes some minutes")


def check_token(headers: Mapping[str, str]) -> None:
    """Raise HubError without a token."""
    if not token_in(headers):
        raise HubError(
            "publishing needs a token; log in with `hf auth login`, or set HF_TOKEN to a token with write access"
        )


def publish_static(folder: Path, space: str, headers: Mapping[str, str], private: bool) -> str:
    """Publish a folder of static files, with its README.md, as a Space that runs nothing, and return its address.
    Raises HubError, also where the Space exists and is of another kind, or public where it shall be private.
    """
    check_token(headers)
    with translate_errors(space, headers):
        api = api_for(headers)
        api.create_repo(space, private=private or None, exist_ok=True, repo_type="space", space_sdk="static")
        found = api.space_info(space, timeout=TIMEOUT_S)
        if found.sdk not in (None, "static"):
            raise HubError(f"{space} is a Space of another kind ({found.sdk}), which it would end; choose another name")
        if private and not found.private:
            raise HubError(f"{space} already exists and is public, so it cannot be private; choose another name")
        message = "A diffusion model that runs in the browser"
        api.upload_folder(repo_id=space, folder_path=folder, repo_type="space", commit_message=message)
    return f"{api.endpoint}/spaces/{space}"
