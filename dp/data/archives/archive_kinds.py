"""Detect the kind of an archive by its first bytes, or else by its name. Standard library only."""

from __future__ import annotations

import re
import tarfile

TAR_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".cbt")
SUFFIXES = (*TAR_SUFFIXES, ".zip", ".cbz")  # of the supported archives
UNSUPPORTED = r"\.(7z|rar|cb7|cbr|zipx|tar\.\w+|tzst|tlz|lz4|lzh|arj|cab|ace|xar|iso|dmg)$"
SPLIT_PART = r"\.(z\d\d|r\d\d|part\d+\.rar|(zip|7z|rar|tar|tgz|tar\.\w+)\.\d\d+)$"
HEADER_BYTES = tarfile.BLOCKSIZE  # enough to detect the kind
REPACK = "repack it as a zip"

ZIP_SIGNATURES = (b"PK\3\4", b"PK\5\6", b"PK\7\x08", b"PK00PK\3\4")
COMPRESSIONS = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0"}  # compressions of tar archives
UNSUPPORTED_SIGNATURES = {
    "7-Zip": b"7z\xbc\xaf\x27\x1c",
    "RAR": b"Rar!\x1a\x07",
    "Zstandard": b"\x28\xb5\x2f\xfd",
    "LZ4": b"\x04\x22\x4d\x18",
    "lzip": b"LZIP",
    "Cabinet": b"MSCF",
    "XAR": b"xar!",
}
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def detect_kind(head: bytes) -> str:
    """Return "tar", "zip", "gzip", "bzip2", "xz", "image", the name of an unsupported archive format, or "" for other
    content. head: the first HEADER_BYTES of the file.

    A tar begins with the name of its first file, such as "BMW/1.jpg", which could match the signature of another
    format. It is therefore checked first.
    """
    if is_tar_header(head):
        return "tar"
    if head.startswith(ZIP_SIGNATURES):
        return "zip"
    if head.startswith(IMAGE_SIGNATURES) or head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    return next(
        (kind for kind, signature in (COMPRESSIONS | UNSUPPORTED_SIGNATURES).items() if head.startswith(signature)), ""
    )


def is_tar_header(block: bytes) -> bool:
    """Return whether a block begins with a tar header that has a valid checksum."""
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
    """Return whether a file name has the suffix of a supported tar archive."""
    return name.lower().endswith(TAR_SUFFIXES)


def is_split_part(name: str) -> bool:
    """Return whether a file name is that of one part of a split archive."""
    return re.search(SPLIT_PART, name, re.IGNORECASE) is not None


def unsupported_reason(name: str, kind: str = "") -> str | None:
    """Return why an archive with this name or of this kind is not supported. Return None if it is supported, or not an
    archive by either.
    """
    if is_split_part(name):
        return f"one part of a split archive, which is not supported; join the parts, and {REPACK}"
    if kind in UNSUPPORTED_SIGNATURES:
        article = "an" if kind in ("LZ4", "XAR") else "a"
        return f"{article} {kind} archive, which is not supported; {REPACK}"
    if found := re.search(UNSUPPORTED, name, re.IGNORECASE):
        return f"{found[0]} archives are not supported; {REPACK}"
    return None
