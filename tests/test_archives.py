"""Zip and tar archives as people's tools write them, and as nobody should."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from serving import ROOT
from test_intake import entry, png, report_of, zip_of

from dp.archives import is_archive, stem
from dp.limits import Limits

CASES = ROOT / "tests" / "data" / "cases"


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def with_local_headers(path: Path, change) -> Path:
    """Rewrite each local header's name: `change(name) -> bytes` of the same length, or a whole new header."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            at = info.header_offset
            (length,) = struct.unpack_from("<H", content, at + 26)
            content[at + 30 : at + 30 + length] = change(bytes(content[at + 30 : at + 30 + length]))
    path.write_bytes(content)
    return path


PAIR = {"cats/a.png": png(1), "cats/b.png": png(2)}
NAMES = ["cats/a.png", "cats/b.png"]


@pytest.mark.parametrize("case, count", [("local-backslash.zip", 3), ("pics.tar.gz", 1)])
def test_the_cases(case, count, tmp_path):
    report = report_of(CASES / case, tmp_path / "dataset", 16)
    assert len(report.used) == count and not report.refused


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(b"/", b"\\"),
        lambda name: name.upper(),
        lambda name: b"?" * len(name),
        lambda name: b"\xff" * len(name),
        lambda name: b"x" + name[1:],
    ],
    ids=["slashes", "case", "lost", "no text", "another"],
)
def test_a_zip_is_read_by_its_central_directory(change, tmp_path):
    path = with_local_headers(zip_of(tmp_path / "a.zip", PAIR), change)
    report = report_of(path, tmp_path / "dataset", 16)
    assert report.used == [f"a.zip/{name}" for name in NAMES] and not report.refused


def test_flags_that_stand_in_one_header_only_do_not_matter(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"é.png": png(1), "b.png": png(2)})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\3\4")
    content[at + 7] ^= 8  # the UTF-8 flag of the first local header
    path.write_bytes(content)
    assert report_of(path, tmp_path / "dataset", 16).used == ["a.zip/b.png", "a.zip/é.png"]


def test_a_name_that_is_not_in_the_encoding_it_claims_costs_no_image(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"é.png": png(1), "b.png": png(2)})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    report = report_of(path, tmp_path / "dataset", 16)
    assert len(report.used) == 2 and "a.zip/b.png" in report.used and not report.refused


def test_names_with_backslashes_are_folders(tmp_path):
    report = report_of(zip_of(tmp_path / "a.zip", {"cats\\a.png": png(1), "cats\\": b""}), tmp_path / "dataset", 16)
    assert report.used == ["a.zip/cats/a.png"]


def test_what_stands_before_and_after_a_zip_does_not_matter(tmp_path):
    path = zip_of(tmp_path / "a.zip", PAIR)
    path.write_bytes(b"#!/bin/sh\necho unpacks itself\n" * 20 + path.read_bytes())
    assert len(report_of(path, tmp_path / "one", 16).used) == 2
    with zipfile.ZipFile(zip_of(tmp_path / "b.zip", PAIR), "a") as archive:
        archive.comment = b"PK\1\2 a comment that looks like an entry"
    assert len(report_of(tmp_path / "b.zip", tmp_path / "two", 16).used) == 2


def test_a_zip_that_was_written_as_a_stream_and_a_zip64_are_read(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with (
        zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w", force_zip64=True) as file,
    ):
        file.write(png(1))
    (tmp_path / "a.zip").write_bytes(pipe.content)
    assert report_of(tmp_path / "a.zip", tmp_path / "dataset", 16).used == ["a.zip/a.png"]


def test_each_unusable_member_costs_one_line_and_no_other_member(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", png(1))
        archive.writestr("bz2.png", png(2), zipfile.ZIP_BZIP2)
        archive.writestr(entry("link.png", 0o120000), "/etc/passwd")
        archive.writestr("../out.png", png(3))
        archive.writestr("/root.png", png(4))
        archive.writestr("locked.png", png(5))
        archive.writestr("inner.tar.gz", b"x")
        archive.writestr("notes.txt", b"x")
        archive.writestr("__MACOSX/._good.png", b"x")
        archive.filelist[5].flag_bits |= 1
    content = bytearray(path.read_bytes())
    report = report_of(path, tmp_path / "dataset", 16)
    assert report.used == ["a.zip/good.png"] and report.left_aside == 1
    reasons = dict(report.refused)
    for name, words in {
        "bz2.png": "compressed in a way that is not read here (bzip2)",
        "link.png": "a link",
        "../out.png": "leads out of the archive",
        "/root.png": "an absolute name",
        "locked.png": "locked with a password",
        "inner.tar.gz": "an archive inside a folder or another archive is not opened",
        "notes.txt": "not one of",
    }.items():
        assert words in reasons[f"a.zip/{name}"]
    content[content.index(png(1)) + 60] ^= 1
    path.write_bytes(content)
    damaged = zip_of(tmp_path / "c.zip", PAIR, zipfile.ZIP_STORED)
    damaged.write_bytes(damaged.read_bytes().replace(png(1), png(1)[:-1] + b"!"))
    report = report_of(damaged, tmp_path / "other", 16)
    assert report.used == ["c.zip/cats/b.png"] and "its checksum is wrong" in report.refused[0][1]


@pytest.mark.parametrize(
    "name, mode",
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.TGZ", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.tar.xz", "w:xz")],
)
def test_tars_are_read_whatever_their_compression(name, mode, tmp_path):
    report = report_of(
        tar_of(tmp_path / name, {"./" + name: data for name, data in PAIR.items()}, mode), tmp_path / "d", 16
    )
    assert report.used == [f"{name}/{inner}" for inner in NAMES] and not report.refused


@pytest.mark.parametrize(
    "options", [{"format": tarfile.USTAR_FORMAT}, {"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}]
)
def test_long_names_and_names_of_any_language_are_read_from_tars(options, tmp_path):
    long = "/".join(["folder"] * 10) + "/é.png"
    report = report_of(tar_of(tmp_path / "a.tar", {long: png(1)}, **options), tmp_path / "dataset", 16)
    assert report.used == [f"a.tar/{long}"]


def test_a_comic_book_and_a_wrong_suffix_are_read_by_their_content(tmp_path):
    zip_of(tmp_path / "a.cbz", PAIR)
    tar_of(tmp_path / "b.zip", {"c.png": png(3)}, "w:gz")
    zip_of(tmp_path / "d.tar", {"d.png": png(4)})
    report = report_of([tmp_path / name for name in ("a.cbz", "b.zip", "d.tar")], tmp_path / "dataset", 16)
    assert report.used == ["a.cbz/cats/a.png", "a.cbz/cats/b.png", "b.zip/c.png"]
    assert [name for name, _ in report.refused] == ["d.tar"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(40)),
        ("a.rar", b"Rar!\x1a\x07\x01\x00" + bytes(40)),
        ("a.zip", b"Rar!\x1a\x07\x01\x00" + bytes(40)),
        ("a.zip", b"PK\x07\x08" + bytes(40)),
        ("a.z01", b"PK\3\4" + bytes(40)),
        ("a.zip.001", b"PK\3\4" + bytes(40)),
        ("a.7z.002", bytes(40)),
        ("a.part2.rar", bytes(40)),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(40)),
        ("a.zip", b"Dear diary" * 50),
        ("a.tar", b"Dear diary" * 500),
        ("a.tar.gz", gzip.compress(b"Dear diary" * 500)),
    ],
)
def test_other_archives_get_a_sentence_and_the_images_beside_them_are_used(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.png").write_bytes(png(1))
    report = report_of([tmp_path / name, tmp_path / "good.png"], tmp_path / "dataset", 16)
    assert report.used == ["good.png"]
    assert [refused for refused, _ in report.refused] == [name] and "repack it as a zip" in report.refused[0][1]


def test_the_last_part_of_a_split_zip_gets_a_sentence(tmp_path):
    path = zip_of(tmp_path / "a.zip", PAIR)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\5\6") + 4] = 3  # this is disk 3
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a part of a split archive; repack it as a zip, in one file"):
        report_of(path, tmp_path / "dataset", 16)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_of_a_tar_that_was_cut_off_the_beginning_is_read(mode, tmp_path):
    path = tar_of(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(20)}, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    report = report_of(path, tmp_path / "dataset", 16)
    assert 5 < len(report.used) < 20 and report.refused


def sparse_tar(folder: Path) -> Path:
    """A GNU sparse member that claims ten gigabytes."""
    info = tarfile.TarInfo("vast.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386 : 386 + 24] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"%011o\0" % (10 << 30 & 0o77777777777)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = folder / "a.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    return path


def hostile_tar(**fields):
    def make(folder: Path) -> Path:
        info = tarfile.TarInfo("x.png")
        for name, value in fields.items():
            setattr(info, name, value)
        with tarfile.open(folder / "a.tar", "w") as archive:
            archive.addfile(info, io.BytesIO(png(1)) if info.size else None)
        return folder / "a.tar"

    return make


def huge_pax_header(folder: Path) -> Path:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    with (folder / "a.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(2 << 30)  # sparse on disk
    return folder / "a.tar"


def nested_long_names(folder: Path) -> Path:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    (folder / "a.tar").write_bytes((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000)
    return folder / "a.tar"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "make, words",
    [
        (hostile_tar(name="../x.png", size=len(png(1))), "leads out of the archive"),
        (hostile_tar(name="/tmp/x.png", size=len(png(1))), "an absolute name"),
        (hostile_tar(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (hostile_tar(type=tarfile.LNKTYPE, linkname="y.png"), "a link"),
        (hostile_tar(type=tarfile.CHRTYPE), "not an ordinary file"),
        (hostile_tar(type=tarfile.FIFOTYPE), "not an ordinary file"),
        (hostile_tar(), "the file is empty"),
        (sparse_tar, "a sparse file|a bomb"),
        (huge_pax_header, "too long"),
        (nested_long_names, "damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_hostile_tars_cost_one_line(make, words, tmp_path):
    with pytest.raises(ValueError, match=f"no usable picture.*({words})"):
        report_of(make(tmp_path), tmp_path / "dataset", 16)


def test_a_tar_bomb_is_not_unpacked(tmp_path):
    path = tar_of(tmp_path / "a.tar.gz", {"x.png": bytes(64 << 20)}, "w:gz", compresslevel=9)
    with pytest.raises(ValueError, match=r"a bomb, it seems: it unpacks to 2\d+ times"):
        report_of(path, tmp_path / "dataset", 16)


@pytest.mark.parametrize(
    "limits, words", [(Limits(zip_entries=2), "more than 2 entries"), (Limits(zip_bytes=2000), "more than 2,000")]
)
def test_the_limits_of_zips_hold_for_tars(limits, words, tmp_path):
    path = tar_of(tmp_path / "a.tar.gz", {f"{number}.png": png(number) for number in range(3)}, "w:gz")
    try:
        report = report_of(path, tmp_path / "dataset", 16, limits=limits)
        assert words in report.refused[0][1]
    except ValueError as error:
        assert words in str(error)


@pytest.mark.parametrize(
    "name, is_one, rest",
    [
        ("cats.ZIP", True, "cats"),
        ("cats.tar.gz", True, "cats"),
        ("my.cats.cbz", True, "my.cats"),
        ("cats.zip.001", True, "cats"),
        ("cats.part1.rar", True, "cats"),
        ("cats.png", False, "cats.png"),
        ("zip", False, "zip"),
    ],
)
def test_names_of_archives(name, is_one, rest):
    assert (is_archive(name), stem(name)) == (is_one, rest)
