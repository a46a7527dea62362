"""Tell archives apart: by their first bytes, and by name where the bytes say nothing. Standard library only."""

from __future__ import annotations

import re
import tarfile

TARS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".cbt")
SUFFIXES = (*TARS, ".zip", ".cbz")  # of the archives that are read
OTHERS = r"\.(7z|rar|cb7|cbr|zipx|tar\.\w+|tzst|tlz|lz4|lzh|arj|cab|ace|xar|iso|dmg)$"
PART = r"\.(z\d\d|r\d\d|part\d+\.rar|(zip|7z|rar|tar|tgz|tar\.\w+)\.\d\d+)$"
HEAD_BYTES = tarfile.BLOCKSIZE  # enough to tell the kind
REPACK = "repack it as a zip"

ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08", b"PK00PK\3\4")
PACKED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0"}  # what a tar may be compressed with
FOREIGN = {
    "7-Zip": b"7z\xbc\xaf\x27\x1c",
    "RAR": b"Rar!\x1a\x07",
    "Zstandard": b"\x28\xb5\x2f\xfd",
    "LZ4": b"\x04\x22\x4d\x18",
    "lzip": b"LZIP",
    "Cabinet": b"MSCF",
    "XAR": b"xar!",
}
IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def kind_of(head: bytes) -> str:
    """Return "tar", "zip", "gzip", "bzip2", "xz", "image", the name of a format that is not read, or "" if none fits.

    A tar begins with the name of its first file, which may be "BMW/1.jpg": its header is checked before the others.
    """
    if is_tar_header(head):
        return "tar"
    if head.startswith(ZIP):
        return "zip"
    if head.startswith(IMAGES) or head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    return next((kind for kind, signature in (PACKED | FOREIGN).items() if head.startswith(signature)), "")


def is_tar_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def stem(name: str) -> str | None:
    """Return `name` without its archive suffix, or None if it has no such suffix."""
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    return suffix and name[: -len(suffix)]


def is_tar_name(name: str) -> bool:
    return name.lower().endswith(TARS)


def is_part(name: str) -> bool:
    return re.search(PART, name, re.IGNORECASE) is not None


def why_not_read(name: str, kind: str = "") -> str | None:
    """Return why an archive of this name, or of this kind, is not read; None where neither says that it is one."""
    if is_part(name):
        return f"one part of a split archive, which is not read; join the parts, and {REPACK}"
    if kind in FOREIGN:
        article = "an" if kind in ("LZ4", "XAR") else "a"
        return f"{article} {kind} archive, which is not read; {REPACK}"
    if found := re.search(OTHERS, name, re.IGNORECASE):
        return f"{found[0]} archives are not read; {REPACK}"
    return None
