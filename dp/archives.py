"""The files in a zip or tar archive, read by what the archive says about itself and never unpacked under their names.

A zip is read by its central directory. People's tools write local headers that differ from it in slashes, case,
encoding and flags, and zipfile rejects those; here the local header only tells where the data begin. A tar is read in
one pass; a compressed one is first unpacked into an anonymous temporary file, because its members are wanted in the
order of their names.

Against bombs: entries, unpacked bytes and their ratio to the archive's size are limited; entries may not share bytes;
headers are read in bounded pieces; and only stored and deflated members are unpacked.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dp.decoder import Refused, open_file
from dp.limits import Limits

SUFFIXES = re.compile(r"\.(zip|cbz|tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
OTHERS = re.compile(
    r"\.(7z|rar|cbr|cb7|cbt|z\d\d|r\d\d|part\d+\.rar|(zip|7z|tar|rar)\.\d{3}|tar\.(zst|lz4?|z)|tzst|gz|bz2|xz|zst|lzh|ace|arj)$",
    re.IGNORECASE,
)
TAR_SUFFIX = re.compile(r"\.(cbt|tar|t[gx]z|tbz2?)$", re.IGNORECASE)  # before there was a magic number
ADVICE = "repack it as a zip"
MAGIC = {  # how other archives begin, whatever their names say
    b"Rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a file compressed with zstd",
    b"PK\x07\x08": "a part of a split archive",
}
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
HEADER_BYTES = 64 << 20  # of one read of a directory or header
ENTRY_SIGNATURE, ENTRY_BYTES = b"PK\1\2", 46  # of each entry of a zip's directory; the least it takes
END_SIGNATURE, END_BYTES = b"PK\5\6", 22 + 0xFFFF  # of the record at a zip's end, with its comment
LOCAL = struct.Struct("<4s22xHH")  # a local header: its signature, the lengths of the name and of the extra field
UTF8_FLAG, ENCRYPTED_FLAG = 0x800, 1
CHUNK = 1 << 20
DISK_LEFT = 1 << 30  # bytes that stay free on the disk while an archive is unpacked


class Member(NamedTuple):
    """A file in an archive: its name there, with forward slashes, its size in bytes, and how to read it."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def is_archive(name: str) -> bool:
    """Whether a file of this name is opened as an archive, or rejected as one of another kind."""
    return bool(SUFFIXES.search(name) or OTHERS.search(name))


def stem(name: str) -> str:
    """The name of an archive without its suffix."""
    return OTHERS.sub("", SUFFIXES.sub("", name))


def members_of(path: Path, name: str, limits: Limits, stack: ExitStack) -> Iterator[Member]:
    """Yield the files of the archive at `path`, called `name`, whose content decides what it is; `stack` closes it.
    Raises Refused where it cannot be used; after some members, where only they could be read.
    """
    with open_file(path) as file:
        start = file.read(265)
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise Refused(f"{what} cannot be read here; {ADVICE}")
    compression = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), None)
    if compression or start[257:262] == b"ustar" or TAR_SUFFIX.search(name):
        yield from _tar_members(path, compression, limits, stack)
    elif OTHERS.search(name):
        raise Refused(f"this kind of archive cannot be read here; {ADVICE}")
    else:
        yield from _zip_members(path, limits, stack)


def _check_name(name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if ".." in parts:
        raise Refused("a name with '..', which leads out of the archive")
    if not parts[0] or parts[0].endswith(":"):
        raise Refused("an absolute name, which leads out of the archive")


def _check_sizes(unpacked: int, packed: int, limits: Limits) -> None:
    if unpacked > limits.zip_ratio * packed:
        raise Refused(
            f"a bomb, it seems: it unpacks to {unpacked // max(packed, 1):,} times its size, more than "
            f"{limits.zip_ratio:,}; if these are real images, save them as PNG or JPEG"
        )
    if unpacked > limits.zip_bytes:
        raise Refused(f"unpacks to {unpacked:,} bytes, more than {limits.zip_bytes:,}")


class _Bounded(io.BufferedReader):
    """A file that is never read in pieces of more than HEADER_BYTES, whatever a header claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise Refused("its list of entries is too long, or the header of one")
        return super().read(size)


# ----------------------------------------------------------------------------
# Zip


class _Directory(_Bounded):
    """A zip whose directory is counted and mended while zipfile reads it, which makes an object of every entry before
    it could be asked how many there are, and rejects the whole zip for one name that is not in UTF-8 as it claims.
    """

    max_entries = 0
    entries = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) if size not in (None, -1) else io.BufferedReader.read(self)  # the end of the file
        if not self.max_entries:
            return data
        self.entries += data.count(ENTRY_SIGNATURE)
        if self.entries > self.max_entries:
            raise Refused(f"more than {self.max_entries:,} entries; make several zips of it")
        return _without_false_utf8(data) if data.startswith(ENTRY_SIGNATURE) else data


def _without_false_utf8(directory: bytes) -> bytes:
    """Clear the UTF-8 flag of the entries whose name is not UTF-8: they are read in cp437, as unflagged ones are."""
    mended, at = bytearray(directory), 0
    while directory[at : at + 4] == ENTRY_SIGNATURE and len(directory) >= at + ENTRY_BYTES:
        (flags,) = struct.unpack_from("<H", directory, at + 8)
        lengths = struct.unpack_from("<3H", directory, at + 28)
        name = directory[at + ENTRY_BYTES : at + ENTRY_BYTES + lengths[0]]
        try:
            name.decode("utf-8")
        except UnicodeDecodeError:
            struct.pack_into("<H", mended, at + 8, flags & ~UTF8_FLAG)
        at += ENTRY_BYTES + sum(lengths)
    return bytes(mended)


def _zip_members(path: Path, limits: Limits, stack: ExitStack) -> Iterator[Member]:
    file = stack.enter_context(_Directory(open_file(path).detach()))
    if _disk_number(file):
        raise Refused(f"a part of a split archive; {ADVICE}, in one file")
    file.max_entries = limits.zip_entries
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except Refused:
        raise
    except Exception as error:  # zipfile answers a damaged directory with many exceptions
        raise Refused(f"a damaged zip, or none at all ({error}); {ADVICE}") from None
    file.max_entries = 0
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    for entry, following in pairwise(entries):
        if entry.header_offset + LOCAL.size + entry.compress_size > following.header_offset:
            raise Refused("a zip bomb: its entries lie over one another")
    _check_sizes(sum(entry.file_size for entry in entries), path.stat().st_size, limits)
    for entry in archive.infolist():
        name = entry.orig_filename.replace("\\", "/")
        if not name.endswith("/"):
            yield Member(name, entry.file_size, partial(_read_zip_member, file, entry))


def _disk_number(file: BinaryIO) -> int:
    """Return which part of a split zip this is, from 0, by the record at its end; 0 where there is none."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - END_BYTES))
    tail = file.read(END_BYTES)
    file.seek(0)
    at = tail.rfind(END_SIGNATURE)
    number = int.from_bytes(tail[at + 4 : at + 6], "little") if at >= 0 else 0
    return 0 if number == 0xFFFF else number  # a zip64


def _read_zip_member(file: BinaryIO, entry: zipfile.ZipInfo) -> io.BytesIO:
    """Return a member's bytes; the caller has checked `entry.file_size`. Raises Refused with the reason."""
    kind = stat.S_IFMT(entry.external_attr >> 16)  # Unix's; zero where the zip was made elsewhere
    _check_name(entry.orig_filename)
    if kind == stat.S_IFLNK:
        raise Refused("a link, which is not followed; zip the image itself")
    if kind not in (0, stat.S_IFREG):
        raise Refused("not an ordinary file, but a pipe, a device or the like")
    if entry.flag_bits & ENCRYPTED_FLAG:
        raise Refused("locked with a password; make a zip without one")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = zipfile.compressor_names.get(entry.compress_type, f"method {entry.compress_type}")
        raise Refused(f"compressed in a way that is not read here ({kind}); make an ordinary zip")
    if entry.file_size == 0:
        raise Refused("the file is empty")
    try:
        file.seek(entry.header_offset)
        signature, *lengths = LOCAL.unpack(file.read(LOCAL.size))
        if signature != b"PK\3\4":
            raise Refused("damaged inside the zip: its data are not where the directory says")
        file.seek(entry.header_offset + LOCAL.size + sum(lengths))
        data = _unpacked(file, entry)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise Refused(f"damaged inside the zip: {error}") from None
    if len(data) != entry.file_size:
        raise Refused(f"damaged inside the zip: {len(data):,} bytes where {entry.file_size:,} are claimed")
    if zlib.crc32(data) != entry.CRC:
        raise Refused("damaged inside the zip: its checksum is wrong")
    return io.BytesIO(data)


def _unpacked(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """At most one byte more than the directory claims."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if entry.compress_type == zipfile.ZIP_DEFLATED else None
    data, left = bytearray(), entry.compress_size
    while left > 0 and len(data) <= entry.file_size and (packed := file.read(min(left, CHUNK))):
        left -= len(packed)
        while packed and len(data) <= entry.file_size:
            if inflate is None:
                data += packed
                break
            data += inflate.decompress(packed, entry.file_size + 1 - len(data))
            packed = inflate.unconsumed_tail
    return bytes(data)


# ----------------------------------------------------------------------------
# Tar


def _tar_members(
    path: Path, compression: Callable[..., BinaryIO] | None, limits: Limits, stack: ExitStack
) -> Iterator[Member]:
    damage = None
    if compression:
        plain = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        damage = _unpack(path, compression, plain, limits)
        plain.seek(0)
        file = stack.enter_context(_Bounded(plain.raw))
    else:
        file = stack.enter_context(_Bounded(open_file(path).detach()))
    try:
        archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115
    except Refused:
        raise
    except Exception as error:  # tarfile answers damage with many exceptions
        raise Refused(f"a damaged tar, or none at all ({damage or error}); {ADVICE}") from None
    count, unpacked, packed = 0, 0, path.stat().st_size
    while True:
        try:
            member = archive.next()
        except Exception as error:
            damage = damage or error
            break
        if member is None:
            break
        if member.size < 0:
            raise Refused(f"damaged after {count:,} entries: one claims {member.size:,} bytes")
        archive.members.clear()  # tarfile keeps every header that it has read
        count, unpacked = count + 1, unpacked + member.size
        if count > limits.zip_entries:
            raise Refused(f"more than {limits.zip_entries:,} entries; make several archives of it")
        _check_sizes(unpacked, packed, limits)
        if not member.isdir():
            yield Member(re.sub(r"^(\./)+", "", member.name), member.size, partial(_read_tar_member, file, member))
    if damage:
        raise Refused(f"damaged after {count:,} entries, which were read: {damage}")


def _unpack(path: Path, compression: Callable[..., BinaryIO], plain: BinaryIO, limits: Limits) -> Exception | None:
    """Write the plain tar to `plain`: all of it, or what comes before a damage, which is returned."""
    unpacked, packed = 0, path.stat().st_size
    try:
        with open_file(path) as file, compression(file) as reader:
            while chunk := reader.read1(CHUNK):  # read would lose what comes before a damage
                unpacked += len(chunk)
                _check_sizes(unpacked, packed, limits)
                if shutil.disk_usage(tempfile.gettempdir()).free < DISK_LEFT:
                    raise Refused("the disk is nearly full; free some space, or unpack it and bring the folder")
                plain.write(chunk)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        return error
    return None


def _read_tar_member(file: BinaryIO, member: tarfile.TarInfo) -> io.BytesIO:
    """Return a member's bytes; the caller has checked its size. Raises Refused with the reason."""
    _check_name(member.name)
    if member.issym() or member.islnk():
        raise Refused("a link, which is not followed; pack the image itself")
    if member.issparse():
        raise Refused("a sparse file; pack the image itself")
    if not member.isreg():
        raise Refused("not an ordinary file, but a pipe, a device or the like")
    if member.size == 0:
        raise Refused("the file is empty")
    file.seek(member.offset_data)
    data = bytearray()
    while len(data) < member.size and (chunk := file.read(min(member.size - len(data), CHUNK))):
        data += chunk
    if len(data) != member.size:
        raise Refused(f"cut off: {len(data):,} of its {member.size:,} bytes are there")
    return io.BytesIO(data)
