"""`python -m dp publish-space user/name`: publish this repository as a Hugging Face Space, or update that Space. The
token comes from the machine's login (`hf auth login`) or HF_TOKEN; it is passed with each call and stored nowhere.

Only the files listed here are uploaded, so images, runs and notes in the working directory stay private.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import SpaceHardware
from huggingface_hub.utils import filter_repo_objects

from dp.hub.client import HubError, api_for, headers_for, token_in, translate_errors
from dp.system import stdio
from dp.system.validation import message_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("dp", "checkpoints", "docs", "tests", "benchmarks", ".ci")
FILES = ("app.py", "README.md", "LICENSE", "requirements.txt", "pyproject.toml", ".gitignore", ".gitattributes")
WANTED = [*FILES, *(f"{folder}/*" for folder in FOLDERS)]
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


def publish(space: str, headers: Mapping[str, str], private: bool, hardware: str | None) -> None:
    if not token_in(headers):
        raise HubError(
            "publishing needs a token; log in with `hf auth login`, or set HF_TOKEN to a token with write access"
        )
    kind = {"repo_type": "space", "space_sdk": "gradio", "space_hardware": hardware}
    message = "Watch a diffusion model at work"
    patterns = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED, "commit_message": message}
    with translate_errors(space, headers):
        api = api_for(headers)
        api.create_repo(space, private=private or None, exist_ok=True, **kind)
        api.upload_folder(repo_id=space, folder_path=ROOT, repo_type="space", **patterns)
    print(f"{api.endpoint}/spaces/{space} is being built, which takes some minutes")
