"""dp.data.archives: archives as written by common tools, and damaged and hostile ones."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import shutil
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dataset import encode
from test_prepare import DEADLINE_S, HOSTILE_BYTES, SIZE, below, noise, png, report_of, write

from dp.data import prepare as intake
from dp.data.archives import archive_kinds
from dp.data.dataset import ImageDataset
from dp.data.prepare import Limits, prepare
from dp.data.report import DatasetReport
from dp.ui.components.component import read_file

CASES = Path(__file__).parent.parent / "data" / "cases"
PNG = {number: png(number) for number in range(4)}
NAMES = {"cats/a.png": PNG[0], "cats/b.png": PNG[1], "c.png": PNG[2]}
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": partial(lzma.compress, preset=0)}


def zip_bytes(files: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED, **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_bytes(files: dict[str | tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def brought(folder: Path, name: str, content: bytes, limits: Limits = intake.DEFAULT_LIMITS) -> DatasetReport:
    """Return the report of an archive that is prepared together with one valid image."""
    write(folder, {"brought": content, "good.png": png(99)})
    sources = [folder / "brought", folder / "good.png"]
    report = report_of(sources, folder / "dataset", SIZE, names=[name, "good.png"], limits=limits)
    report.accepted.remove("good.png")  # which no broken archive beside it hides
    return report


def only_reason(report: DatasetReport) -> str:
    [(_, reason)] = report.rejected
    return reason


# ----------------------------------------------------------------------------
# Zips: the central directory decides


def local(change: Callable[[bytes], bytes], content: bytes) -> bytes:
    """Return the zip with `change` applied to everything before its central directory."""
    at = content.index(b"PK\1\2")
    changed = change(content[:at])
    assert len(changed) == at and changed != content[:at]
    return changed + content[at:]


def central(change: Callable[[bytes], bytes], content: bytes) -> bytes:
    at = content.index(b"PK\1\2")
    changed = change(content[at:])
    assert len(changed) == len(content) - at and changed != content[at:]
    return content[:at] + changed


def flagged(part: bytes, signature: bytes, at: int, bit: int) -> bytes:
    """Return the zip with one bit of the field at `at` flipped in all headers with this signature."""
    changed = bytearray(part)
    for found in re.finditer(re.escape(signature), part):
        changed[found.start() + at] ^= bit
    return bytes(changed)


def with_extra(kind: int, data: bytes, name: str = "a.png") -> bytes:
    info = zipfile.ZipInfo(name)
    info.extra = struct.pack("<2H", kind, len(data)) + data
    return zip_bytes({info: PNG[0]} | {"cats/b.png": PNG[1], "c.png": PNG[2]})


def unicode_path(name: str, crc: int) -> bytes:
    return struct.pack("<BL", 1, crc) + name.encode()


PLAIN = zip_bytes(NAMES)
UMLAUT = zip_bytes({"kätzchen.png": PNG[0], "cats/b.png": PNG[1], "c.png": PNG[2]})


def renamed(raw: bytes) -> bytes:
    """Return a zip of three files. The first has the name `raw`, without the UTF-8 flag."""
    return zip_bytes({"x" * len(raw): PNG[0], "cats/b.png": PNG[1], "c.png": PNG[2]}).replace(b"x" * len(raw), raw)


def streamed() -> bytes:
    """Return a zip as written to a pipe: sizes and checksums follow the data."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in NAMES.items():
            archive.writestr(name, content)
    return pipe.content


def zip64() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in NAMES.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(content)
    content = buffer.getvalue()
    at, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, end - at, at)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return (
        content[:end] + record + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[2**32 - 1] * 2, 0)
    )


def entry_64() -> bytes:
    """Return a zip whose second entry has its sizes and offset only in the zip64 field."""
    content = zip_bytes({"a.png": PNG[0], "cats/b.png": PNG[1]}, zipfile.ZIP_STORED)
    at = content.index(b"PK\1\2", content.index(b"PK\1\2") + 1)
    end = content.index(b"PK\5\6")
    entry = bytearray(content[at:end])
    packed, size = struct.unpack_from("<2L", entry, 20)
    offset = struct.unpack_from("<L", entry, 42)[0]
    struct.pack_into("<2L", entry, 20, *[2**32 - 1] * 2)
    struct.pack_into("<L", entry, 42, 2**32 - 1)
    struct.pack_into("<H", entry, 30, 28)
    entry += struct.pack("<2H3Q", 1, 24, size, packed, offset)
    tail = bytearray(content[end:])
    struct.pack_into("<L", tail, 12, struct.unpack_from("<L", tail, 12)[0] + 28)
    return content[:at] + entry + tail


def commented(comment: bytes) -> bytes:
    return PLAIN[:-2] + struct.pack("<H", len(comment)) + comment


def altered(content: bytes, offset: int, form: str, value: int, which: int = 0) -> bytes:
    """Return a zip with one field of the central entry number `which` set to a value."""
    at = [found.start() for found in re.finditer(re.escape(b"PK\1\2"), content)][which]
    changed = bytearray(content)
    struct.pack_into(form, changed, at + offset, value)
    return bytes(changed)


def behind(program: bytes) -> bytes:
    """Return a zip appended to a program. Only the offsets of its entries are adjusted."""
    content = PLAIN
    for which in range(3):
        at = [found.start() for found in re.finditer(re.escape(b"PK\1\2"), PLAIN)][which]
        content = altered(content, 42, "<L", struct.unpack_from("<L", PLAIN, at + 42)[0] + len(program), which)
    return program + content


READ: dict[str, tuple[bytes, int]] = {  # zips, and how many images are in each
    "backslashes in local names": (local(lambda part: part.replace(b"cats/", b"cats\\"), PLAIN), 3),
    "backslashes in central names": (central(lambda part: part.replace(b"cats/", b"cats\\"), PLAIN), 3),
    "backslashes in both": (PLAIN.replace(b"cats/", b"cats\\"), 3),
    "another case in local names": (local(lambda part: part.replace(b"cats/", b"CATS/"), PLAIN), 3),
    "other local names": (local(lambda part: part.replace(b"cats/a.png", b"temp000001"), PLAIN), 3),
    "UTF-8 flag only in the directory": (local(lambda part: flagged(part, b"PK\3\4", 7, 8), UMLAUT), 3),
    "UTF-8 flag only locally": (central(lambda part: flagged(part, b"PK\1\2", 9, 8), UMLAUT), 3),
    "UTF-8 without the flag": (flagged(flagged(UMLAUT, b"PK\3\4", 7, 8), b"PK\1\2", 9, 8), 3),
    "cp437": (renamed("kätzchen.png".encode("cp437")), 3),
    "Shift-JIS": (renamed("写真.png".encode("cp932")), 3),
    "Shift-JIS with a backslash as a second byte": (renamed("表.png".encode("cp932")), 3),
    "flagged as UTF-8, but is not": (UMLAUT.replace("kät".encode(), b"k\xff\xfet"), 3),
    "cp437 locally, UTF-8 in the directory": (local(lambda p: p.replace("kät".encode(), b"ka\x84t"), UMLAUT), 3),
    "Unicode path": (with_extra(0x7075, unicode_path("kätzchen.png", zlib.crc32(b"a.png"))), 3),
    "Unicode path of another name": (with_extra(0x7075, unicode_path("other.txt", 1)), 3),
    "Unicode path cut short": (with_extra(0x7075, b"\1\2"), 3),
    "extra field that is too long": (with_extra(0x5455, b"12345").replace(b"UT\5\0", b"UT\xff\0"), 3),
    "local extra fields differ": (local(lambda p: p.replace(b"UT\5\0", b"XX\7\0"), with_extra(0x5455, b"12345")), 3),
    "needs a later version": (central(lambda part: flagged(part, b"PK\1\2", 6, 0x50), PLAIN), 3),
    "sizes behind the data": (streamed(), 3),
    "zip64": (zip64(), 3),
    "zip64 behind another program": (b"MZ" + bytes(5000) + zip64(), 3),
    "zip64 entry": (entry_64(), 2),
    "behind another program": (b"MZ" + bytes(5000) + PLAIN, 3),
    "behind another program that the offsets reckon with": (behind(b"MZ" + bytes(5000)), 3),
    "a wrong offset of the directory": (PLAIN[:-6] + b"\1\2\3\0" + PLAIN[-2:], 3),
    "a wrong length of the directory": (PLAIN[:-10] + b"\1\2\3\4" + PLAIN[-6:], 3),
    "behind a script": (b"#!/bin/sh\nexit\n" + PLAIN, 3),
    "behind a split marker": (b"PK00" + PLAIN, 3),
    "with garbage at its end": (PLAIN + b"garbage" * 500, 3),
    "with 600 KB of zeros at its end": (PLAIN + bytes(600_000), 3),
    "with a comment": (commented(b"hello"), 3),
    "with an end record in its comment": (commented(b"PK\5\6" + bytes(18)), 3),
    "with a false end record in its comment": (commented(b"PK\5\6" + b"\xff" * 18), 3),
    "one damaged count": (PLAIN[:-14] + b"\1\0\1\0" + PLAIN[-10:], 3),
    "duplicate names": (PLAIN.replace(b"cats/b", b"cats/a"), 3),
    "folders": (zip_bytes({"cats/": b"", "dogs\\": b"", **NAMES}), 3),
    "an empty folder by its attributes": (zip_bytes({zipfile.ZipInfo("cats/"): b"", **NAMES}), 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_a_zip_is_read_by_its_directory(tmp_path, kind):
    content, count = READ[kind]
    report = brought(tmp_path, "it.zip", content)
    assert (len(report.accepted), report.rejected, report.ignored) == (count, [], 0)


def test_a_zip_with_backslashes_in_local_names(tmp_path):
    report = report_of(CASES / "local-backslash.zip", tmp_path / "dataset", 48)
    assert report.accepted == [f"local-backslash.zip/cats/{name}.png" for name in "abc"] and not report.rejected
    images = ImageDataset(tmp_path / "dataset", 48).images
    assert len({image.tobytes() for image in images}) == 3


def test_a_compressed_tar(tmp_path):
    report = report_of(CASES / "pics.tar.gz", tmp_path / "dataset", 48)
    assert report.accepted == ["pics.tar.gz/a.png"] and not report.rejected
    [image] = ImageDataset(tmp_path / "dataset", 48).images
    assert (image == (20, 100, 50)).all()


@pytest.mark.parametrize(
    "raw, name",
    [
        ("kätzchen.png".encode("cp437"), "kätzchen.png"),
        ("kätzchen.png".encode(), "kätzchen.png"),
        (b"a\\b.png", "a/b.png"),
        ("é\\b.png".encode(), "é/b.png"),
    ],
)
def test_names_in_a_zip_are_decoded(tmp_path, raw, name):
    assert f"it.zip/{name}" in brought(tmp_path, "it.zip", renamed(raw)).accepted


# ----------------------------------------------------------------------------
# Zips with broken entries: one line for each, and the rest is read


STORED = zip_bytes(NAMES, zipfile.ZIP_STORED)
BROKEN = {  # -> content, images read, reasons told
    "a password": (altered(PLAIN, 8, "<H", 1), 2, ["a password"]),
    "a password by its local header": (
        local(lambda part: part.replace(PNG[0][:40], bytes(40), 1), flagged(STORED, b"PK\3\4", 6, 1)), 2, ["a password"]
    ),
    "AES": (altered(altered(PLAIN, 8, "<H", 1), 10, "<H", 99), 2, ["a password"]),
    "Deflate64": (altered(PLAIN, 10, "<H", 9), 2, ["with Deflate64, which is not supported; repack it as a zip"]),
    "PPMd": (altered(PLAIN, 10, "<H", 98), 2, ["PPMd"]),
    "Zstandard": (altered(PLAIN, 10, "<H", 93), 2, ["Zstandard"]),
    "an unknown method": (altered(PLAIN, 10, "<H", 77), 2, ["method 77"]),
    "a wrong checksum": (altered(PLAIN, 16, "<L", 1), 2, ["Bad CRC"]),
    "a checksum that is wrong in the middle": (altered(PLAIN, 16, "<L", 1, 1), 2, ["Bad CRC"]),
    "data that is no deflate": (local(lambda p: p.replace(p[40:60], b"\xff" * 20, 1), PLAIN), 2, ["damaged inside"]),
    "an offset past the end": (altered(PLAIN, 42, "<L", 10**9), 2, ["damaged inside the zip"]),
    "an offset into other data": (altered(PLAIN, 42, "<L", 700, 2), 2, ["no file at the offset in its directory"]),
    "a size of 4 GB": (altered(PLAIN, 24, "<L", 2**32 - 2), 2, ["bytes, more than|cannot come out"]),
    "a size of 100 MB": (altered(PLAIN, 24, "<L", 100 << 20), 2, ["data cannot hold the claimed"]),
    "a packed size of 4 GB": (altered(PLAIN, 20, "<L", 2**32 - 2), 2, ["data cannot hold the claimed"]),
    "a size too small": (altered(PLAIN, 24, "<L", 100), 2, ["not the 100 bytes"]),
    "a packed size too small": (altered(PLAIN, 20, "<L", 900), 2, ["not the|damaged"]),
    "a local signature": (local(lambda p: b"XX" + p[2:], PLAIN), 2, ["no file at the offset in its directory"]),
    "a central signature": (altered(PLAIN, 0, "<H", 0, 1), 2, ["1 entries of its directory"]),
    "a length of a name": (altered(PLAIN, 28, "<H", 60_000, 1), 3, []),
    "other files": (zip_bytes(NAMES | {"notes.txt": b"x", "inner.tar.gz": b"x", "it.7z": b"x", "._c.png": b"x"}), 3,
        ["bring it by itself", "7z archives are not supported; repack", "supported image type"]),
    "nothing": (zip_bytes({}), 0, ["without files"]),
    "only folders": (zip_bytes({"a/": b""}), 0, ["without files"]),
    "its last kilobyte cut off": (PLAIN[:-1000], 0, ["its directory is missing; download or copy it again"]),
    "two of three parts missing": (PLAIN[:-18] + b"\2\0\2\0" + PLAIN[-14:], 0, ["one part of a split zip"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_entry_of_a_zip_does_not_affect_the_others(tmp_path, kind):
    content, count, reasons = BROKEN[kind]
    report = brought(tmp_path, "it.zip", content)
    told = [reason for _, reason in report.rejected]
    assert (len(report.accepted), len(told)) == (count, len(reasons)), told
    assert all(re.search(words, reason) for words, reason in zip(reasons, told)), told


# ----------------------------------------------------------------------------
# The content decides, not the name


@pytest.mark.parametrize("name", ["it.zip", "it.cbz", "it.tar", "it.tar.gz", "it.tgz", "it.tar.xz", "it", "it.bin"])
def test_an_archive_may_have_any_name(tmp_path, name):
    kinds = {"zip": PLAIN} | {suffix: pack(tar_bytes(NAMES)) for suffix, pack in PACK.items()}
    for kind, content in kinds.items():
        report = brought(tmp_path / kind, name, content)
        assert report.accepted == [f"{name}/{inner}" for inner in sorted(NAMES)], kind
        assert not report.rejected


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["photo.zip", "photo.png.tar.gz"])
def test_an_image_named_as_an_archive_is_an_image(tmp_path, name, form):
    report = brought(tmp_path, name, encode(Image.new("RGB", (20, 20), "red"), form))
    assert report.accepted == [name] and not report.rejected


UNSUPPORTED_SIGNATURES = {
    "it.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7-Zip archive, which is not supported; repack it as a zip"),
    "it.rar": (b"Rar!\x1a\x07\1\0" + bytes(100), "a RAR archive, which is not supported; repack it as a zip"),
    "rar.zip": (b"Rar!\x1a\x07\0" + bytes(100), "a RAR archive.*repack it as a zip"),
    "7z.cbz": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7-Zip archive.*repack it as a zip"),
    "it.tar.zst": (b"\x28\xb5\x2f\xfd" + bytes(100), "a Zstandard archive.*repack it as a zip"),
    "it.tar.Z": (b"\x1f\x9d" + bytes(100), "Z archives are not supported; repack it as a zip"),
    "it.z01": (b"PK\7\x08" + PLAIN[:500], "one part of a split archive.*repack it as a zip"),
    "it.zip.001": (PLAIN[:500], "one part of a split archive.*repack it as a zip"),
    "it.zip.002": (PLAIN[300:500], "one part of a split archive.*repack it as a zip"),
    "it.7z.001": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "one part of a split archive.*repack it as a zip"),
    "it.7z.002": (bytes(range(100)), "one part of a split archive.*repack it as a zip"),
    "it.part1.rar": (b"Rar!\x1a\x07\1\0" + bytes(100), "one part of a split archive.*repack it as a zip"),
    "it.r00": (bytes(range(100)), "one part of a split archive.*repack it as a zip"),
    "it.tar.gz.001": (gzip.compress(tar_bytes(NAMES))[:500], "one part of a split archive.*repack it as a zip"),
    "notes.gz": (gzip.compress(b"Dear diary" * 500), "no tar archive in gzip.*repack it as a zip"),
    "text.zip": (b"Dear diary", "neither a zip nor a tar.*repack it as a zip"),
    "text.tar": (b"Dear diary" * 500, "no tar archive"),
    "text.tgz": (b"Dear diary" * 500, "no tar archive"),
    "notes.txt": (b"Dear diary" * 500, "not a supported image type"),
    "empty.tar": (bytes(10240), "without files"),
    "empty.tar.gz": (gzip.compress(tar_bytes({})), "without files"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED_SIGNATURES)
def test_unsupported_files_are_rejected_with_the_reason(tmp_path, name):
    content, words = UNSUPPORTED_SIGNATURES[name]
    report = brought(tmp_path, name, content)
    assert re.search(words, only_reason(report)), report.rejected
    assert report.accepted == []


def test_a_complete_zip_named_as_a_part_is_read(tmp_path):
    assert len(brought(tmp_path, "it.zip.001", PLAIN).accepted) == 3


def test_an_archive_inside_a_folder_is_rejected_and_the_images_beside_it_are_read(tmp_path):
    folder = write(tmp_path / "images", {f"a.{kind}": b"x" for kind in ("zip", "tar.gz", "tgz", "tar", "7z", "z01")})
    write(folder, {"good.png": PNG[0]})
    report = report_of(folder, tmp_path / "dataset", SIZE)
    reasons = dict(report.rejected)
    assert report.accepted == ["good.png"] and len(reasons) == 6
    assert all("bring it by itself" in reasons[f"a.{kind}"] for kind in ("zip", "tar.gz", "tgz", "tar"))
    assert "repack it as a zip" in reasons["a.7z"] and "split" in reasons["a.z01"]


def test_the_page_offers_the_supported_suffixes_and_the_command_removes_them_from_run_names():
    class Accept(HTMLParser):
        accepted = ""

        def handle_starttag(self, tag, attributes):
            if dict(attributes).get("class") == "zip":
                self.accepted = dict(attributes)["accept"]

    page = Accept()
    page.feed(read_file("upload/upload.html"))
    assert set(page.accepted.split(",")) == {Path(f"x{suffix}").suffix for suffix in archive_kinds.SUFFIXES}
    assert [archive_kinds.stem(f"a.b{suffix.upper()}") for suffix in archive_kinds.SUFFIXES] == ["a.b"] * len(
        archive_kinds.SUFFIXES
    )


# ----------------------------------------------------------------------------
# Tars


def info(name: str, **fields) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_the_same_images_as_its_folder(tmp_path, compression, form):
    files = {f"{'ab'[i % 2]}/{('long' * 30 + '/') * (i == 3)}{i}é.png": png(i) for i in (3, 1, 2, 0)}
    folder = write(tmp_path / "folder", files)
    (tmp_path / f"it.tar{compression}").write_bytes(PACK[compression](tar_bytes(files, form)))
    report = report_of(tmp_path / f"it.tar{compression}", tmp_path / "ours", SIZE)
    theirs = report_of(folder, tmp_path / "theirs", SIZE)
    assert len(report.accepted) == 4
    np.testing.assert_array_equal(
        ImageDataset(tmp_path / "ours", SIZE).images, ImageDataset(tmp_path / "theirs", SIZE).images
    )
    assert report.sizes == theirs.sizes


@pytest.mark.skipif(shutil.which("tar") is None, reason="this system has no tar")
@pytest.mark.parametrize("options", [["-c"], ["-cz"], ["-c", "--format=v7"], ["-c", "--format=gnu"], ["-c", "-S"]])
def test_archives_of_the_system_tar_are_read(tmp_path, options):
    write(tmp_path / "in", NAMES)
    subprocess.run(["tar", *options, "-f", tmp_path / "it.tar", "-C", tmp_path / "in", "."], check=True)
    report = report_of(tmp_path / "it.tar", tmp_path / "dataset", SIZE)
    assert report.accepted == ["it.tar/c.png", "it.tar/cats/a.png", "it.tar/cats/b.png"] or sorted(report.accepted) == [
        "it.tar/c.png", "it.tar/cats/a.png", "it.tar/cats/b.png"
    ]  # fmt: skip
    assert not report.rejected


def raw(*parts: tarfile.TarInfo | bytes) -> bytes:
    """Return a tar made by hand from headers and data, which is padded to whole blocks."""
    blocks = [part if isinstance(part, bytes) else part.tobuf(tarfile.GNU_FORMAT) for part in parts]
    return b"".join(block + bytes(-len(block) % 512) for block in blocks) + bytes(1024)


def file(name: str, content: bytes) -> bytes:
    return info(name, size=len(content)).tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return info("header", type=kind, size=len(data)).tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    length = len(key) + len(value) + 3
    length = next(n for n in range(length, length + 9) if n == length + len(str(n)))
    return f"{length} {key}={value}\n".encode()


def damaged_header(content: bytes, which: bytes) -> bytes:
    return content.replace(which, b"~" + which[1:], 1)


A, B, C = (file(name, PNG[number]) for number, name in enumerate(("a.png", "b.png", "c.png")))
LONG = random.Random(0).randbytes(1 << 20).hex()
SPARSE_HEAD = bytearray(info("s.png", type=tarfile.GNUTYPE_SPARSE, size=512).tobuf(tarfile.GNU_FORMAT))
SPARSE_HEAD[482] = 1
SPARSE_HEAD[148:156] = b" " * 8
SPARSE_HEAD[148:156] = b"%06o\0 " % sum(SPARSE_HEAD)
TARS = {  # -> content, images read, reasons told
    "links": (raw(A, info("s.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), info("h.png", type=tarfile.LNKTYPE),
        B), 2, ["a link, which is not followed"] * 2),
    "devices": (raw(A, info("c.png", type=tarfile.CHRTYPE), info("b.png", type=tarfile.BLKTYPE),
        info("p.png", type=tarfile.FIFOTYPE), B), 2, ["not a regular file"] * 3),
    "absolute names": (raw(A, file("/tmp/x.png", PNG[1]), file("C:/x.png", PNG[2]), C), 2, ["an absolute path"] * 2),
    "names that lead out": (raw(A, file("../x.png", PNG[1]), file("a/../../x.png", PNG[1]), C), 2, ["with '..'"] * 2),
    "a sparse file": (raw(A, bytes(SPARSE_HEAD), bytes(504) + b"\1" + bytes(7), bytes(512), b"x" * 512, B),
        2, ["a sparse file"]),
    "a sparse file of pax": (raw(A, extended(record("GNU.sparse.major", "1") + record("GNU.sparse.name", "s.png")
        + record("GNU.sparse.realsize", str(10**12))), file("GNUSparseFile.0/s.png", b"1\n0\n5\nhello"), B),
        2, ["a sparse file"]),
    "a pax header of 2 MB": (raw(A, extended(record("comment", LONG)), B, C), 2, ["an extended header of 2,097"]),
    "a long name of 2 MB": (raw(A, extended(LONG.encode(), tarfile.GNUTYPE_LONGNAME), B, C), 2, ["an extended header"]),
    "pax headers that are no records": (raw(A, extended(b"99 path=x\n"), B, extended(b"5" * 1000), C), 3, []),
    "pax records without an end": (raw(extended(b"9 a\n" * 200_000), A, B), 2, []),
    "a size by pax": (raw(extended(record("size", str(len(PNG[0])))), A, B), 2, []),
    "a size by pax that is no number": (raw(extended(record("size", "9" * 5000)), A, B), 2, []),
    "a global header": (raw(extended(record("comment", "git"), tarfile.XGLTYPE), A, B), 2, []),
    "names that are not UTF-8": (raw(file("x", PNG[0]).replace(b"x", "ä.png".encode("latin-1"), 1), B), 1, ["header"]),
    "macOS side files": (raw(file("._a.png", b"\0\5\x16\7"), A, file("__MACOSX/x.png", b"x"), B), 2, []),
    "other files": (raw(A, file("notes.txt", b"x"), file("inner.zip", PLAIN), file("empty.png", b""), B), 2,
        ["the file is empty", "bring it by itself", "supported image type"]),
    "folders": (raw(info("cats/", type=tarfile.DIRTYPE), A, info("dogs/"), info("x/", type=tarfile.DIRTYPE, size=9), B),
        2, []),
    "a name twice": (raw(A, file("a.png", PNG[1])), 2, []),
    "a damaged header": (damaged_header(raw(A, B, C), b"b.png"), 2, ["a damaged header; the file after it"]),
    "a damaged first header": (damaged_header(raw(A, B, C), b"a.png"), 2, ["a damaged header; the file after it"]),
    "a damaged last header": (damaged_header(raw(A, B, C), b"c.png"), 2, ["only the files before that were read"]),
    "an end in the middle of a file": (raw(A, B, C)[: len(A + B) + 600], 2, [r"truncated \(its end is missing\)"]),
    "an end in the middle of a header": (raw(A, B, C)[: len(A + B) + 100], 2, [r"truncated \(its end is missing\)"]),
    "no end": (raw(A, B, C)[:-1024], 3, []),
    "no padding at its end": (raw(file("x.png", PNG[3]))[: 512 + len(PNG[3])], 1, []),
    "a size past its end": (raw(A, info("b.png", size=10**10)), 1, [r"truncated \(its end is missing\)"]),
    "a negative size": (raw(A, info("b.png", size=-1000), C), 2, ["a damaged header"]),
    "part of a larger file": (raw(A, info("m.png", type=b"M", size=512), b"x" * 512, B), 2, ["split across archives"]),
}  # fmt: skip


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("kind", TARS)
def test_a_broken_file_in_a_tar_does_not_affect_the_others(tmp_path, kind, compression):
    content, count, reasons = TARS[kind]
    report = brought(tmp_path, f"it.tar{compression}", PACK[compression](content))
    told = [reason for _, reason in report.rejected]
    assert (len(report.accepted), len(told)) == (count, len(reasons)), told
    assert all(re.search(words, reason) for words, reason in zip(reasons, told)), told


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz"])
def test_all_complete_files_of_a_truncated_compressed_tar_are_read(tmp_path, compression):
    content = PACK[compression](tar_bytes({f"{i:02}.png": png(i, 60, 90) for i in range(90)}))
    report = brought(tmp_path, f"it.tar{compression}", content[: len(content) * 9 // 10])
    assert 30 < len(report.accepted) < 90
    assert "truncated (its end is missing)" in only_reason(report)


def test_a_wrong_checksum_of_a_compressed_tar_is_reported(tmp_path):
    content = gzip.compress(tar_bytes({f"{i:02}.png": png(i, 60, 90) for i in range(20)}))
    report = brought(tmp_path, "it.tar.gz", content[:-8] + b"\0\0\0\0" + content[-4:])
    assert "incorrect data check" in only_reason(report) and len(report.accepted) > 5


@pytest.mark.parametrize("tail", [b"", bytes(1000), b"garbage" * 100])
@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz"])
def test_a_tar_may_be_compressed_in_several_streams_with_trailing_data(tmp_path, compression, tail):
    whole = tar_bytes(NAMES)
    pieces = PACK[compression](whole[:700]) + PACK[compression](whole[700:]) + tail
    report = brought(tmp_path, f"it.tar{compression}", pieces)
    assert len(report.accepted) == 3 and not report.rejected


# ----------------------------------------------------------------------------
# Limits


def large_xz_dictionary() -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    packer = lzma.LZMACompressor(filters=[filters[0] | {"dict_size": 1 << 20}])
    content = bytearray(packer.compress(tar_bytes(NAMES)) + packer.flush())
    at = 12  # of the block's header: its size, flags, the filter's id, the length and value of its properties
    assert content[at + 2 : at + 4] == b"\x21\x01"
    content[at + 4] = 36  # a dictionary of 1 GiB
    length = (content[at] + 1) * 4
    content[at + length - 4 : at + length] = struct.pack("<L", zlib.crc32(content[at : at + length - 4]))
    return bytes(content)


def zeros(compression: str) -> bytes:
    return PACK[compression](tar_bytes({"a.png": PNG[0], "x.png": bytes(64 << 20)}))


BOMBS = {  # packed when they are used, which takes seconds
    "gzip": (lambda: zeros(".gz"), "probably a decompression bomb: it unpacks to more than 200 times its size"),
    "bzip2": (lambda: zeros(".bz2"), "probably a decompression bomb: it unpacks to more than 200 times its size"),
    "xz": (lambda: zeros(".xz"), "probably a decompression bomb: it unpacks to more than 200 times its size"),
    "zeros behind the end": (
        lambda: gzip.compress(tar_bytes(NAMES) + bytes(64 << 20)),
        "probably a decompression bomb",
    ),
    "one of 64 MB that is no image": (
        lambda: PACK[".gz"](tar_bytes({"x.bin": bytes(64 << 20)})),
        "probably a decompression bomb",
    ),
    "xz that takes a gigabyte of memory": (large_xz_dictionary, "Memory usage limit"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_rejected_in_bounded_time_and_memory(tmp_path, kind):
    make, words = BOMBS[kind]
    content = make()
    tracemalloc.start()
    since = time.process_time()
    try:
        report = brought(tmp_path, "it.tar", content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - since < DEADLINE_S
    assert peak < HOSTILE_BYTES
    assert re.search(words, only_reason(report)), report.rejected
    assert report.accepted == []  # not even those before the limit was met
    assert below(tmp_path) == {"brought", "good.png", "dataset", "dataset/images.npy", "dataset/report.json"}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize(
    "limits, words",
    [
        (Limits(zip_entries=2), "more than 2 entries; make several archives"),
        (Limits(zip_bytes=4000), "unpacks to [a-z0-9, ]+ bytes"),
    ],
)
def test_a_tar_beyond_a_limit_is_rejected_as_a_whole(tmp_path, limits, words, compression):
    report = brought(tmp_path, "it.tar", PACK[compression](tar_bytes(NAMES)), limits)
    assert re.search(words, only_reason(report)) and report.accepted == []


def test_headers_without_a_file_count_towards_the_limit(tmp_path):
    content = raw(*[extended(record("path", "a.png"))] * 9, A)
    report = brought(tmp_path, "it.tar", content, Limits(zip_entries=2))
    assert "more than 2 entries" in only_reason(report)
    assert len(brought(tmp_path, "it.tar", content).accepted) == 1


def test_a_file_beyond_the_limit_is_rejected_without_extraction(tmp_path):
    limits = Limits(file_bytes=10_000)
    for name, content in (("it.zip", zip_bytes), ("it.tgz", lambda files: gzip.compress(tar_bytes(files)))):
        report = brought(tmp_path / name, name, content({"large.png": png(5, 200, 200), "a.png": PNG[0]}), limits)
        assert "bytes, more than 10,000" in only_reason(report) and len(report.accepted) == 1


def test_memory_does_not_grow_with_a_compressed_tar(tmp_path):
    files = {f"{i}.bmp": encode(Image.fromarray(noise(i, 300, 300)), "BMP") for i in range(150)}
    (tmp_path / "it.tgz").write_bytes(gzip.compress(tar_bytes(files), 1))
    total = sum(map(len, files.values()))
    del files
    tracemalloc.start()
    try:
        report = report_of(tmp_path / "it.tgz", tmp_path / "dataset", SIZE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(report.accepted) == 150
    assert peak < total * 0.7, f"{peak:,} bytes of Python's memory for {total:,}"


def test_disk_space_is_reserved_for_training_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("dp.data.archives.tar_blocks.SPOOL_BYTES", 1000)
    monkeypatch.setattr("dp.data.archives.tar_blocks.RESERVED_BYTES", 1 << 60)
    assert "not enough disk space" in only_reason(brought(tmp_path, "it.tgz", gzip.compress(tar_bytes(NAMES))))


def test_a_long_listing_reports_progress_and_can_be_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "LISTING_S", -1)
    (tmp_path / "it.tgz").write_bytes(gzip.compress(tar_bytes(NAMES)))
    going = prepare(tmp_path / "it.tgz", tmp_path / "dataset", SIZE)
    assert [next(going)[:3] for _ in range(3)] == [
        (0, None, ""), (0, None, "it.tgz/cats/a.png"), (0, None, "it.tgz/cats/b.png")
    ]  # fmt: skip
    going.close()
    assert below(tmp_path) == {"it.tgz"}
