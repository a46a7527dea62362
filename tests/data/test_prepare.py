"""dp.data.prepare, dp.data.sources and dp.data.report: arbitrary sources become a dataset on disk, or an error with the
reasons.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_dataset import BAD, GOOD, encode, png_by_hand

from dp.data import prepare as intake
from dp.data.dataset import ImageDataset
from dp.data.decode import decode
from dp.data.prepare import Limits, prepare
from dp.data.prepared import contact_sheet
from dp.data.report import EXPECT, DatasetReport
from dp.diffusion.policy import DiffusionPolicy
from dp.system.text import shown
from dp.training.trainer import Trainer

SIZE = 16
DEADLINE_S = 25  # a machine that is busy; 5 is what is asked for
HOSTILE_BYTES = 100 << 20  # of Python's memory, which no hostile file may pass
JUNK = {
    ".DS_Store": b"\0\0\0\1Bud1",
    ".hidden/cat.png": GOOD["plain.png"][0],
    "__MACOSX/nested/._one.jpg": b"\0\5\x16\7",
    "nested/Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]",
}
ZOO = {name: content for name, (content, *_) in (GOOD | BAD).items()} | JUNK
ASIDE = {name for name in ZOO if name in JUNK or Path(name).name.startswith(".")}


def noise(number: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def png(number: int, *shape: int) -> bytes:
    return encode(Image.fromarray(noise(number, *shape)), "PNG")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def report_of(*arguments, **keywords) -> DatasetReport:
    *_, last = prepare(*arguments, **keywords)
    return last.report


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("zoo"), ZOO)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Return a folder with ten different images in two subfolders."""
    return write(tmp_path / "pictures", {f"{'ab'[i % 2]}/{i}.png": png(i) for i in range(10)})


# ----------------------------------------------------------------------------
# What comes in comes out


@pytest.mark.parametrize("way", ["folder", "files", "zip"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_every_file_is_accepted_rejected_duplicate_or_ignored_from_any_kind_of_source(zoo, tmp_path, way, mode):
    sources, names, prefix = zoo, None, ""
    if way == "files":  # as an upload gives them: one flat place each, and the names apart
        names = list(ZOO)
        sources = [write(tmp_path / str(i), {"it": ZOO[name]}) / "it" for i, name in enumerate(names)]
    if way == "zip":
        sources, prefix = zip_of(tmp_path / "zoo.zip", ZOO), "zoo.zip/"
    report = report_of(sources, tmp_path / "dataset", SIZE, mode, names=names)

    copies = dict(report.duplicates)
    assert sorted(report.accepted + list(copies)) == sorted(prefix + name for name in GOOD)
    assert report.ignored == len(ASIDE)
    rejected = {name.removeprefix(prefix): reason for name, reason in report.rejected}
    assert sorted(rejected) == sorted(BAD.keys() - ASIDE)
    assert all(re.search(BAD[name][1], reason) for name, reason in rejected.items())

    images = ImageDataset(tmp_path / "dataset", SIZE, convert_image_to=mode).images
    assert len(images) == len(report.accepted)
    for name in GOOD:  # bit by bit what decoding the file alone gives, copies included
        row = report.accepted.index(copies.get(prefix + name, prefix + name))
        np.testing.assert_array_equal(images[row], decode(zoo / name, SIZE, mode))


def test_the_prepared_dataset_equals_that_of_the_folder(pictures, tmp_path):
    report = report_of(pictures, tmp_path / "dataset", SIZE)
    prepared, plain = ImageDataset(tmp_path / "dataset", SIZE), ImageDataset(pictures, SIZE)
    assert prepared.report.accepted == plain.report.accepted == report.accepted
    np.testing.assert_array_equal(prepared.images, plain.images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(prepared, plain, strict=True))


def test_images_from_folders_zips_and_files_are_sorted_by_name(pictures, tmp_path):
    album = zip_of(tmp_path / "m.zip", {"b.png": png(101), "a.png": png(100)})
    other = write(tmp_path / "other", {"c.png": png(102)})
    single = write(tmp_path, {"z.png": png(103)}) / "z.png"
    report = report_of([single, album, other, pictures], tmp_path / "dataset", SIZE)
    assert report.accepted == ["m.zip/a.png", "m.zip/b.png", "other/c.png", *sorted(
        f"pictures/{path.relative_to(pictures).as_posix()}" for path in pictures.rglob("*.png")
    ), "z.png"]  # fmt: skip


def test_the_array_is_independent_of_the_source(tmp_path):
    single = write(tmp_path, {"a.png": png(1)}) / "a.png"
    report_of(single, tmp_path / "run" / "dataset", SIZE)
    single.unlink()
    images = np.load(tmp_path / "run" / "dataset" / "images.npy", allow_pickle=False)
    assert images.dtype == np.uint8 and images.shape == (1, SIZE, SIZE, 3)
    np.testing.assert_array_equal(ImageDataset(tmp_path / "run" / "dataset", SIZE).images, images)


def test_the_trainer_draws_the_same_batches_from_it_without_a_warning(tiny_rin, pictures, tmp_path):
    report_of(pictures, tmp_path / "dataset", 8)
    batches = []
    for folder in (pictures, tmp_path / "dataset"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            trainer = Trainer(
                DiffusionPolicy(tiny_rin()), folder, train_batch_size=4, results_folder=tmp_path / "run", num_samples=1
            )
            batches.append(trainer.batch(3, 0).images)
    assert torch.equal(*batches)
    assert isinstance(trainer.dataset.images, np.memmap)  # `exclude` has not read it all into memory


def test_writing_to_the_mapped_array_does_not_change_the_file(pictures, tmp_path):
    report_of(pictures, tmp_path / "dataset", SIZE)
    before = (tmp_path / "dataset" / "images.npy").read_bytes()
    torch.from_numpy(ImageDataset(tmp_path / "dataset", SIZE).images).zero_()
    assert (tmp_path / "dataset" / "images.npy").read_bytes() == before


# ----------------------------------------------------------------------------
# The report


def test_a_saved_report_loads(zoo, tmp_path):
    report = report_of(zoo, tmp_path / "dataset", SIZE)
    assert DatasetReport.load(tmp_path / "dataset") == report
    assert report.rejected and report.duplicates and report.ignored


def test_the_report_has_the_original_sizes_and_kinds(tmp_path):
    shapes = {"a": (10, 90), "b": (30, 31), "c": (20, 40), "d": (16, 16), "e": (15, 200)}  # height, width
    files = {f"{name}.png": png(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    files["grey.png"] = encode(Image.fromarray(noise(10)[..., 0]), "PNG")
    files["clear.png"] = encode(Image.fromarray(np.dstack([noise(11), noise(12)[..., 0]])), "PNG")
    report = report_of(write(tmp_path / "p", files), tmp_path / "dataset", SIZE)
    assert report.sizes == {"smallest": [90, 10], "median": [24, 20], "largest": [31, 30]}
    assert report.smaller == 2  # a, e
    assert report.kinds == {"color": 5, "grayscale": 1, "with transparency": 1}
    said = " ".join(report.summary_lines())
    assert "7 images accepted" in said and "smallest 90 x 10" in said
    assert "2 images are smaller than the training size and will look blurred" in said


def test_the_reported_size_is_that_of_the_upright_image(tmp_path):
    report = report_of(write(tmp_path / "p", {"a.jpg": GOOD["turned-6.jpg"][0]}), tmp_path / "dataset", SIZE)
    assert report.sizes["largest"] == [64, 48]


def test_the_same_pixels_are_kept_once_and_the_copy_is_named(tmp_path):
    same = noise(1)
    files = {
        "b.png": encode(Image.fromarray(same), "PNG"),
        "a.png": encode(Image.fromarray(same), "PNG", compress_level=0),  # other bytes
        "c.bmp": encode(Image.fromarray(same), "BMP"),
        "d.png": png(2),
    }
    report = report_of(write(tmp_path / "p", files), tmp_path / "dataset", SIZE)
    assert report.accepted == ["a.png", "d.png"]
    assert report.duplicates == [("b.png", "a.png"), ("c.bmp", "a.png")]
    assert "2 exact duplicates ignored." in " ".join(report.summary_lines())


@pytest.mark.parametrize(
    "count, words",
    [
        (1, "will memorize them"), (19, "will memorize them"), (20, "mostly memorize"), (99, "mostly memorize"),
        (100, "112 faces"), (499, "112 faces"), (500, "an hour on"), (4_999, "an hour on"), (5_000, "hours on a GPU"),
        (10**5, "hours on a GPU"),
    ],
)  # fmt: skip
def test_what_to_expect_depends_on_the_number(count, words):
    report = DatasetReport(accepted=["a"] * count)
    report.describe([(64, 64, "color")] * count, SIZE)
    assert words in report.summary_lines()[-1]
    assert [fewer for fewer, _ in EXPECT] == sorted(fewer for fewer, _ in EXPECT)


HOSTILE_NAMES = {
    "a\nb.png": "a\\nb.png",
    "\x1b[31mred.png": "\\x1b[31mred.png",
    "gpj\u202egnp.png": "gpj\\u202egnp.png",  # right-to-left override: shown in another order than it is
    "caf\udce9.png": "caf\\udce9.png",  # a byte that is no UTF-8
    "<img src=x onerror=alert(1)>.png": "<img src=x onerror=alert(1)>.png",  # the page escapes it
    "Kätzchen 猫.png": "Kätzchen 猫.png",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_name_is_shown_on_one_line_and_without_acting(tmp_path, name):
    sources = [write(tmp_path, {"a": png(1)}) / "a", write(tmp_path, {"b": b"x"}) / "b"]
    report = report_of(sources, tmp_path / "dataset", SIZE, names=[name, "bad" + name])
    assert report.accepted == [HOSTILE_NAMES[name]] and report.rejected[0][0] == "bad" + HOSTILE_NAMES[name]
    assert DatasetReport.load(tmp_path / "dataset") == report


def test_a_long_name_keeps_both_ends():
    assert shown("a" * 5000 + ".png") == "a" * 60 + "…" + "a" * 56 + ".png"
    assert shown("\0" * 5000, 10).count("\\") <= 4 and len(shown("\0" * 5000, 10)) == 11


def test_the_contact_sheet_shows_evenly_spaced_images(pictures, tmp_path):
    report_of(pictures, tmp_path / "dataset", SIZE)
    images = ImageDataset(tmp_path / "dataset", SIZE).images
    sheet = contact_sheet(tmp_path / "dataset", 4)
    tiles = sheet.reshape(2, SIZE, 2, SIZE, 3).swapaxes(1, 2).reshape(4, SIZE, SIZE, 3)
    np.testing.assert_array_equal(tiles, images[[0, 3, 6, 9]])
    assert contact_sheet(tmp_path / "dataset").shape == (2 * SIZE, 5 * SIZE, 3)  # all ten of them
    assert contact_sheet(tmp_path / "dataset", 7).shape == (2 * SIZE, 3 * SIZE, 3)  # no empty tile


# ----------------------------------------------------------------------------
# While it runs


def test_progress_is_reported_per_file_at_a_bounded_rate(pictures, tmp_path, monkeypatch):
    since = time.monotonic()
    told = list(prepare(pictures, tmp_path / "dataset", SIZE))
    assert len(told) <= 3 + (time.monotonic() - since) / intake.PROGRESS_S
    monkeypatch.setattr(intake, "PROGRESS_S", -1)
    first, *middle, last = prepare(pictures, tmp_path / "dataset", SIZE)
    assert first == (0, None, "", None)
    assert [(done, total) for done, total, *_ in middle] == [(i, 10) for i in range(10)]
    assert [name for _, _, name, _ in middle] == last.report.accepted
    assert last[:3] == (10, 10, "") and all(report is None for *_, report in middle)


@pytest.mark.parametrize("after", [1, 2, 6, 11])
def test_closing_early_leaves_nothing_behind(pictures, tmp_path, monkeypatch, after):
    monkeypatch.setattr(intake, "PROGRESS_S", -1)
    going = prepare(pictures, tmp_path / "run" / "dataset", SIZE)
    for _ in range(after):
        next(going)
    going.close()
    assert below(tmp_path / "run") == set()  # hidden ones would be seen, too


def test_a_dataset_is_replaced_atomically(pictures, tmp_path, monkeypatch):
    into = tmp_path / "dataset"
    first = report_of(pictures, into, SIZE)
    monkeypatch.setattr(intake, "PROGRESS_S", -1)
    going = prepare(write(tmp_path / "more", {"x.png": png(50), "y.png": png(51)}), into, SIZE)
    for _ in range(3):
        next(going)
    going.close()
    with pytest.raises(ValueError, match="no usable image"):
        report_of(write(tmp_path / "none", {"a.txt": b"x"}), into, SIZE)
    assert DatasetReport.load(into) == first and len(ImageDataset(into, SIZE)) == 10
    report_of(tmp_path / "more", into, SIZE)
    assert ImageDataset(into, SIZE).report.accepted == ["x.png", "y.png"]
    assert below(into) == {"images.npy", "report.json"}


def test_a_full_disk_leaves_nothing_behind(pictures, tmp_path, monkeypatch):
    def full(self, folder):  # the last write of all
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DatasetReport, "save", full)
    with pytest.raises(OSError, match="No space left"):
        report_of(pictures, tmp_path / "run" / "dataset", SIZE)
    assert below(tmp_path / "run") == set()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    size, count = 128, 300
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}.bmp", encode(Image.fromarray(noise(i, size, size)), "BMP"))
    tracemalloc.start()
    try:
        report = report_of(tmp_path / "many.zip", tmp_path / "dataset", size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(report.accepted) == count and report.sizes["median"] == [size, size]
    array = (tmp_path / "dataset" / "images.npy").stat().st_size
    assert array > count * size * size * 3
    assert peak < array / 5, f"{peak:,} bytes of Python's memory for an array of {array:,}"


# ----------------------------------------------------------------------------
# Hostile input: one line each, soon, and the good picture beside it is used


def entry(name: str, kind: int) -> zipfile.ZipInfo:
    """Return an entry with the file type of a link, a pipe or a device."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


def zip_with(change: Callable[[zipfile.ZipFile], None]) -> Callable[[Path], Path]:
    """Return a zip of one plain image that is changed before the directory is written."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "h.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.png", png(9))
            change(archive)
        return folder / "h.zip"

    return make


def zip_holding(name: str | zipfile.ZipInfo, content: bytes = png(8), compression: int = zipfile.ZIP_DEFLATED):
    def make(folder: Path) -> Path:
        return zip_of(folder / "h.zip", {name: content}, compression)

    return make


def encrypted(archive: zipfile.ZipFile) -> None:
    archive.filelist[0].flag_bits |= 1


def lying_about_its_size(archive: zipfile.ZipFile) -> None:
    archive.writestr("lie.png", bytes(64 << 20))
    archive.filelist[1].file_size = 1000


def overlapping(archive: zipfile.ZipFile) -> None:
    archive.filelist *= 50


def directory_zip(count: int, padding: int = 0) -> Callable[[Path], Path]:
    """Return a zip of `count` entries for the same data. Its directory is `padding` bytes longer than the entries."""

    def make(folder: Path) -> Path:
        whole = zip_of(folder / "h.zip", {"a": b""}, zipfile.ZIP_STORED).read_bytes()
        at, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
        with (folder / "h.zip").open("wb") as file:
            file.write(whole[:at] + whole[at:end] * count)
            file.seek(padding, os.SEEK_CUR)
            length = (end - at) * count + padding
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, length, at, 0))  # claims to hold one
        return folder / "h.zip"

    return make


def cut_in_half(folder: Path) -> Path:
    path = zip_of(folder / "h.zip", {"x.png": png(1)})
    path.write_bytes(path.read_bytes()[:300])
    return path


def with_one_bit_flipped(folder: Path) -> Path:
    path = zip_of(folder / "h.zip", {"x.png": png(1)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    return path


def sparse(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            file.truncate(10 << 30)
        return folder / name

    return make


def pipe(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with names")
        os.mkfifo(folder / name)
        return folder / name

    return make


def device(folder: Path) -> Path:
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no device files")
    return link(folder / "zero.png", Path("/dev/zero"))


def link(path: Path, target: Path) -> Path:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no links for plain users")
    return path


def folder_with(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def inside(folder: Path) -> Path:
        (folder / "inner").mkdir()
        make(folder / "inner")
        return folder / "inner"

    return inside


def leading_out(folder: Path) -> Path:
    return link(folder / "out.png", write(folder.parent, {"secret.png": png(77)}) / "secret.png")


def leading_round(folder: Path) -> Path:
    return link(folder / "round.png", folder / "round.png")


def file_holding(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: write(folder, {name: content}) / name


VAST = png_by_hand(60_000, 60_000, 8, 2)
ABSOLUTE, OUT = "an absolute path, which leads out", "a path with '..', which leads out"
ORDINARY = "not a regular file"
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {  # -> what is brought, and the reason that must be told
    "zip bomb": (zip_holding("x.png", bytes(64 << 20)), "zip bomb.* unpacks to [0-9,]+ times its size, more than 200"),
    "zip whose header lies": (zip_with(lying_about_its_size), "damaged inside the zip"),
    "zip of overlapping entries": (zip_with(overlapping), "zip bomb: its entries overlap"),
    "zip of too many entries": (directory_zip(150_000), "more than 100,000 entries"),
    "zip with a vast directory": (directory_zip(1, 100 << 20), "list of entries is too long"),
    "zip in a zip": (zip_holding("inner.zip", b"PK"), "bring it by itself"),
    "zip in a folder": (folder_with(zip_holding("x.png")), "bring it by itself"),
    "zip with ../": (zip_holding("../x.png"), OUT),
    "zip with ..\\": (zip_holding("a\\..\\..\\x.png"), OUT),
    "zip with an absolute name": (zip_holding("/tmp/x.png"), ABSOLUTE),
    "zip with a drive": (zip_holding("C:\\x.png"), ABSOLUTE),
    "zip with a link": (zip_holding(entry("x.png", stat.S_IFLNK), b"/etc/passwd"), "a link, which is not followed"),
    "zip with a device": (zip_holding(entry("x.png", stat.S_IFCHR)), ORDINARY),
    "zip with a password": (zip_with(encrypted), "protected by a password"),
    "zip packed with bzip2": (zip_holding("x.png", compression=zipfile.ZIP_BZIP2), "bzip2, which is not supported"),
    "zip packed with lzma": (zip_holding("x.png", compression=zipfile.ZIP_LZMA), "with LZMA, which is not supported"),
    "zip with an empty picture": (zip_holding("x.png", b""), "the file is empty"),
    "zip cut in half": (cut_in_half, "incomplete zip: its directory is missing"),
    "zip with a flipped bit": (with_one_bit_flipped, "damaged inside the zip: Bad CRC"),
    "zip that is none": (file_holding("h.zip", b"Dear diary,\n" * 50), "neither a zip nor a tar"),
    "zip that is empty": (file_holding("h.zip", b""), "the file is empty"),
    "60,000 x 60,000 PNG": (file_holding("vast.png", VAST), "more than 100,000,000 pixels"),
    "60,000 x 60,000 PNG in a zip": (zip_holding("vast.png", VAST), "more than 100,000,000 pixels"),
    "sparse picture of 10 GB": (sparse("vast.png"), "10,737,418,240 bytes, more than"),
    "sparse picture of 10 GB in a folder": (folder_with(sparse("vast.png")), "10,737,418,240 bytes, more than"),
    "sparse zip of 10 GB": (sparse("vast.zip"), "neither a zip nor a tar"),
    "pipe": (pipe("x.png"), ORDINARY),
    "pipe in a folder": (folder_with(pipe("x.png")), ORDINARY),
    "pipe as a zip": (pipe("x.zip"), ORDINARY),
    "device": (device, ORDINARY),
    "link out of the folder": (folder_with(leading_out), "a link that leads out of the folder"),
    "link to itself": (folder_with(leading_round), "cannot be opened"),
    "file that is gone": (lambda folder: folder / "gone.png", "cannot be opened: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_rejected_in_bounded_time_and_memory(tmp_path, kind):
    (tmp_path / "brought").mkdir()
    make, words = HOSTILE[kind]
    brought = make(tmp_path / "brought")
    good = write(tmp_path, {"good.png": png(1)}) / "good.png"
    before = below(tmp_path)

    tracemalloc.start()
    since = time.monotonic()
    try:
        report = report_of([brought, good], tmp_path / "dataset", SIZE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - since < DEADLINE_S
    assert peak < HOSTILE_BYTES

    [(name, reason)] = report.rejected
    assert re.search(words, reason), reason
    assert "\n" not in name + reason and len(reason) < 320
    assert "good.png" in report.accepted
    assert not any("secret" in used or "zero" in used for used in report.accepted)
    assert below(tmp_path) - before == {"dataset", "dataset/images.npy", "dataset/report.json"}


@pytest.mark.parametrize("kind", ["zip bomb", "zip with ../", "60,000 x 60,000 PNG", "sparse picture of 10 GB"])
def test_a_hostile_file_alone_is_an_error_with_the_same_reason(tmp_path, kind):
    (tmp_path / "brought").mkdir()
    make, words = HOSTILE[kind]
    with pytest.raises(ValueError, match=f"no usable image.*{words}"):
        report_of(make(tmp_path / "brought"), tmp_path / "dataset", SIZE)
    assert not (tmp_path / "dataset").exists()


def test_each_bad_entry_of_a_zip_is_rejected_separately(tmp_path):
    files = {f"{i}.png": png(i) for i in range(5)} | {f"bad-{i}.png": b"x" for i in range(3)}
    report = report_of(zip_of(tmp_path / "a.zip", files), tmp_path / "dataset", SIZE)
    assert report.accepted == [f"a.zip/{i}.png" for i in range(5)]
    assert [name for name, _ in report.rejected] == [f"a.zip/bad-{i}.png" for i in range(3)]


# ----------------------------------------------------------------------------
# Settings and errors


@pytest.mark.parametrize(
    "limits, words",
    [
        (Limits(files=9), "more than 9 files; bring fewer"),
        (Limits(total_bytes=5000), "bytes in total, more than 5,000; bring fewer files"),
        (Limits(file_bytes=100), "no usable image.*bytes, more than 100.*and 5 more"),
        (Limits(pixels=479), "no usable image.*24 x 20 pixels, more than 479"),
    ],
)
def test_exceeding_a_limit_is_an_error_that_names_it(pictures, tmp_path, limits, words):
    with pytest.raises(ValueError, match=words):
        report_of(pictures, tmp_path / "dataset", SIZE, limits=limits)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    "limits, words",
    [
        (Limits(zip_entries=2), "more than 2 entries; make several archives"),
        (Limits(zip_bytes=4000), "unpacks to [0-9,]+ bytes, more than 4,000"),
        (Limits(files=2), "more than 2 files"),
    ],
)
def test_a_zip_beyond_a_limit_is_rejected(tmp_path, limits, words):
    album = zip_of(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(3)}, zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=words):
        report_of(album, tmp_path / "dataset", SIZE, limits=limits)


def test_files_exactly_at_the_limits_are_accepted(pictures, tmp_path):
    sizes = [path.stat().st_size for path in pictures.rglob("*.png")]
    limits = Limits(files=10, file_bytes=max(sizes), total_bytes=sum(sizes), pixels=480)
    assert len(report_of(pictures, tmp_path / "a", SIZE, limits=limits).accepted) == 10
    album = zip_of(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(3)})
    limits = Limits(zip_entries=3, zip_bytes=sum(len(png(i)) for i in range(3)), zip_ratio=1)
    assert len(report_of(album, tmp_path / "b", SIZE, limits=limits).accepted) == 3


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"files": 0}, "files must be a whole number of at least 1, got 0"),
        ({"zip_ratio": 1.5}, "zip_ratio.*1.5"),
        ({"file_bytes": "1 GB"}, "file_bytes.*'1 GB'"),
        ({"pixels": 10**9}, "pixels must be at most 178,956,970, got 1,000,000,000"),
    ],
)
def test_an_invalid_limit_is_rejected_with_its_value(settings, words):
    with pytest.raises(ValueError, match=words):
        Limits(**settings)


def test_environment_variables_set_the_limits(monkeypatch):
    assert Limits.from_environment() == Limits()
    monkeypatch.setenv("DP_MAX_FILES", "200")
    monkeypatch.setenv("DP_MAX_ZIP_BYTES", "5000000")
    assert Limits.from_environment() == Limits(files=200, zip_bytes=5_000_000)
    for text in ("many", "0", "-3", "1.5", ""):
        monkeypatch.setenv("DP_MAX_FILES", text)
        with pytest.raises(ValueError, match=r"DP_MAX_FILES must be a whole number of at least 1"):
            Limits.from_environment()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"mode": "CMYK"}, "L, RGB, RGBA.*'CMYK'"),
        ({"image_size": 0}, "image_size.*0"),
        ({"names": ["a", "b"]}, "2 names for 1 sources"),
    ],
)
def test_a_setting_out_of_range_is_rejected(pictures, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        report_of(**{"sources": pictures, "output_dir": tmp_path / "dataset", "image_size": SIZE} | settings)


def test_only_a_dataset_is_replaced(pictures, tmp_path):
    before = below(pictures)
    with pytest.raises(ValueError, match="is not empty and not a dataset"):
        report_of(pictures, pictures, SIZE)
    assert below(pictures) == before
    (tmp_path / "empty").mkdir()
    assert report_of(pictures, tmp_path / "empty", SIZE).accepted


@pytest.mark.parametrize("sources", [[], "empty"])
def test_empty_sources_are_an_error(tmp_path, sources):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no usable image \(no files found\)"):
        report_of(sources and tmp_path / sources, tmp_path / "dataset", SIZE)


@pytest.mark.parametrize(
    "image_size, mode, words",
    [
        (32, "RGB", "is 16 x 16 RGB, expected 32 x 32 RGB"),
        (16, "L", "is 16 x 16 RGB, expected 16 x 16 L"),
        (8, "RGBA", "is 16 x 16 RGB, expected 8 x 8 RGBA"),
    ],
)
def test_a_dataset_with_another_size_or_mode_is_an_error_that_names_both(pictures, tmp_path, image_size, mode, words):
    report_of(pictures, tmp_path / "dataset", 16)
    with pytest.raises(ValueError, match=words):
        ImageDataset(tmp_path / "dataset", image_size, convert_image_to=mode)


def cut(folder: Path) -> None:
    with (folder / "images.npy").open("rb+") as file:
        file.truncate(2000)


def pickled(folder: Path) -> None:
    np.save(folder / "images.npy", np.array([{}], object), allow_pickle=True)


def floats(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((10, SIZE, SIZE, 3), np.float32))


def one_fewer(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((9, SIZE, SIZE, 3), np.uint8))


def no_report(folder: Path) -> None:
    (folder / "report.json").write_text("{")


def other_report(folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps({"accepted": 3, "rejected": []}))


@pytest.mark.parametrize("harm", [cut, pickled, floats, one_fewer, no_report, other_report])
def test_a_damaged_dataset_is_an_error_that_names_it(pictures, tmp_path, harm):
    report_of(pictures, tmp_path / "dataset", SIZE)
    harm(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"dataset' is damaged \(.+\); prepare it again"):
        ImageDataset(tmp_path / "dataset", SIZE)


# ----------------------------------------------------------------------------
# The long proof

SOAK = """
import json, re, sys, time
from dp.data.prepare import prepare
def peak():  # of this process alone: getrusage's starts at that of the process which started it
    return 1024 * int(re.search("VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
since, told, longest, last = time.monotonic(), 0, 0, time.monotonic()
for progress in prepare(sys.argv[1], sys.argv[2], 64):
    told, longest, last = told + 1, max(longest, time.monotonic() - last), time.monotonic()
    if progress.done <= 500: early = peak()
seconds = time.monotonic() - since
report = progress.report
print(json.dumps({"used": len(report.accepted), "refused": len(report.rejected), "duplicates": len(report.duplicates),
    "seconds": round(seconds, 1), "told": told, "longest_silence_s": round(longest, 2),
    "peak_mb": round(peak() / 2**20),
    "peak_growth_mb": round((peak() - early) / 2**20, 1),
    "array_mb": round(len(report.accepted) * 64 * 64 * 3 / 2**20)}))
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is asked of the system in Linux's way")
@pytest.mark.parametrize("way", ["folder", "zip"])
def test_ten_thousand_images_in_bounded_memory(tmp_path, way):
    bad = range(0, 10_000, 100)
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(10_000):
        (folder / f"{i}.jpg").write_bytes(b"x" if i in bad else encode(Image.fromarray(noise(i, 96, 120)), "JPEG"))
    source = folder
    if way == "zip":
        source = zip_of(tmp_path / "many.zip", {p.name: p.read_bytes() for p in folder.iterdir()}, zipfile.ZIP_STORED)
    script = [sys.executable, "-c", SOAK, source, tmp_path / "dataset"]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=280, cwd=Path(__file__).resolve().parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    print(way, done.stdout)
    figures = json.loads(done.stdout)
    assert (figures["used"], figures["refused"], figures["duplicates"]) == (9_900, 100, 0)
    assert figures["peak_growth_mb"] < 32 < figures["array_mb"]
    assert figures["longest_silence_s"] < 5
    assert figures["told"] > min(figures["seconds"], 5)


def test_a_report_with_the_field_names_of_the_first_version_loads(tmp_path):
    report = DatasetReport.load(Path(__file__).parent / "version-1" / "runs" / "finished" / "dataset")
    assert report.kinds == {"color": 6} and "6 images accepted (6 color;" in report.summary_lines()[0]
    assert report.accepted == [f"{number}.png" for number in range(6)] and report.rejected == []
    old = {"used": ["a.png"], "refused": [["b.png", "the file is empty"]], "left_aside": 2}
    (tmp_path / "report.json").write_text(json.dumps(old))
    report = DatasetReport.load(tmp_path)
    assert report == DatasetReport(accepted=["a.png"], rejected=[("b.png", "the file is empty")], ignored=2)
    report.save(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written.keys() == {
        "accepted",
        "rejected",
        "duplicates",
        "ignored",
        "kinds",
        "sizes",
        "smaller",
        "classes",
        "labels",
    }
