"""The command `python -m dp export-web CHECKPOINT FOLDER`: a model as a page that runs in its visitors' browsers."""

from __future__ import annotations

import argparse
from pathlib import Path

from dp.hub import client, space
from dp.serving.cli import locate
from dp.system import stdio
from dp.system.atomic_files import replacing
from dp.system.device import set_thread_count
from dp.system.validation import message_of, quote
from dp.ui.web.graph import load_onnx
from dp.ui.web.page import MARK, export_page


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dp export-web",
        usage="%(prog)s CHECKPOINT FOLDER [options]",
        description="Write a folder of static files in which anyone can watch the model denoise, in their own browser. "
        "Any web server can serve it; nothing has to compute behind it.",
        epilog="example: python -m dp export-web faces-32 faces-page --publish user/faces",
    )
    add = parser.add_argument
    words = "a name below checkpoints/, a checkpoint folder, a run folder, or user/name on the Hub"
    add("checkpoint", metavar="CHECKPOINT", help=words)
    add("folder", metavar="FOLDER", type=Path, help="a new folder, or one of this command, which is replaced")
    add("--name", metavar="NAME", help="title of the page (the model's name)")
    add("--publish", metavar="user/name", help="also publish it as this static Space on Hugging Face, which is free")
    add("--private", action="store_true", help="publish a private Space, which only you can see")
    return parser


def main() -> None:
    parser = options()
    stdio.protect()
    args = parser.parse_args()
    try:
        headers = client.headers_for(args.publish, None) if args.publish else None
        if headers is not None:
            space.check_token(headers)
        if args.private and not args.publish:
            raise ValueError("--private belongs to --publish user/name")
        set_thread_count()
        load_onnx()
        target = args.folder.resolve()
        check_target(target)
        folder, name = locate(args.checkpoint)
        with replacing(target) as temporary:
            size = export_page(folder, temporary, args.name or name)
        print(f"{args.folder}: {size:,} bytes. To look at it: python -m http.server --directory {args.folder}")
        if headers is not None:
            print(space.publish_static(target, args.publish, headers, args.private))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130)  # the exit code of shells for an interrupt


def check_target(folder: Path) -> None:
    """Raise ValueError unless the folder is new, empty, or one that this command wrote."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{quote(str(folder))} is a file; choose a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not ((folder / MARK).is_file() and (folder / "runtime").is_dir()):
        raise ValueError(f"{quote(str(folder))} has files of something else, which would be lost; choose a new folder")


if __name__ == "__main__":
    main()
