"""`python -m dp.publish_space user/name`: this repository as a Hugging Face Space, created if need be, or brought up to
date. The token is the machine's login (`hf auth login`) or HF_TOKEN; it is handed on with each call and kept nowhere.

What goes up is listed here, so that pictures, runs and notes that lie beside it stay where they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from huggingface_hub import HfApi, SpaceHardware, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects, httpx, validate_repo_id

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("dp", "checkpoints", "docs", "tests", "benchmarks", ".ci")
FILES = ("app.py", "README.md", "LICENSE", "requirements.txt", "pyproject.toml", ".gitignore", ".gitattributes")
WANTED = [*FILES, *(f"{folder}/*" for folder in FOLDERS)]
UNWANTED = ["*__pycache__*", "*.pyi", "*/.*"]
ADVICE = {  # for what the Hub answers
    401: "it does not take this token: log in again with `hf auth login`, or set HF_TOKEN",
    402: "this account cannot have a Space on that hardware; a free one may on ZeroGPU",
    403: "this token may not do that: it needs the write role, and your name or organisation in front of the Space's",
    429: "too many requests: try again in a few minutes",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dp.publish_space",
        description="Put this repository up as a Hugging Face Space, or bring that Space up to date.",
        epilog="Log in first with `hf auth login`, or set HF_TOKEN to a token with the write role.",
    )
    add = parser.add_argument
    add("space", metavar="user/name", help="the Space; it is created where there is none")
    add("--private", action="store_true", help="create it for you alone to see")
    hardware = [flavour.value for flavour in SpaceHardware]
    words = "create it on this, not on cpu-basic; some cost money by the hour: %(choices)s"
    add("--hardware", choices=hardware, metavar="NAME", help=words)
    add("--dry-run", action="store_true", help="only list what would go up, and its size; needs no network")
    args = parser.parse_args()
    try:
        validate_repo_id(args.space)
        if "/" not in args.space:
            raise ValueError(f"name the Space as user/name, not {args.space!r}")
        if args.dry_run:
            sizes = {path: (ROOT / path).stat().st_size for path in files()}
            print("\n".join(f"{size:>12,}  {path}" for path, size in sizes.items()))
            print(f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files would go up to the Space {args.space}")
        else:
            publish(args.space, args.private, args.hardware)
    except HfHubHTTPError as error:
        parser.exit(2, f"the Hub says no: {on_one_line(advice(error))}\n")
    except httpx.HTTPError as error:
        parser.exit(2, f"the Hub cannot be reached ({error or type(error).__name__})\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{on_one_line(error)}\n")
    except KeyboardInterrupt:
        sys.exit(130)  # as shells count it


def files() -> list[str]:
    """What belongs to the Space, relative to the repository."""
    paths = sorted(path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*"))
    paths = [name for name in [*FILES, *paths] if (ROOT / name).is_file()]
    return list(filter_repo_objects(paths, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def publish(space: str, private: bool, hardware: str | None) -> None:
    token = get_token()
    if token is None:
        raise ValueError("log in first with `hf auth login`, or set HF_TOKEN to a token with the write role")
    api = HfApi(token=token)
    kind = {"repo_type": "space", "space_sdk": "gradio", "space_hardware": hardware}
    api.create_repo(space, private=private or None, exist_ok=True, **kind)
    patterns = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}
    words = "See a diffusion model work"
    api.upload_folder(repo_id=space, folder_path=ROOT, repo_type="space", commit_message=words, **patterns)
    print(f"{api.endpoint}/spaces/{space} is being built, which takes some minutes")


def advice(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = error.server_message or f"error {status}"
    return f"{ADVICE[status]} ({said})" if status in ADVICE else said


def on_one_line(words: object) -> str:
    return " ".join(str(words).split())


if __name__ == "__main__":
    main()
