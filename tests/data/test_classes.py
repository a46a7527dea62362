"""Class folders: which folders are classes, in what order, and under which names."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp.data.classes import class_names, find_classes
from dp.data.dataset import ImageDataset
from dp.data.prepare import prepare
from dp.data.report import DatasetReport
from dp.system.validation import MAX_CLASS_NAME

LAYOUT = {  # of a folder: its images
    "": 1,
    "dogs": 2,
    "cats": 3,
    "cats/kittens": 1,
    ".hidden": 1,
    "__MACOSX": 1,
}


def image(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8))


@pytest.fixture
def pets(tmp_path) -> Path:
    number = 0
    for folder, count in LAYOUT.items():
        (tmp_path / "pets" / folder).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image(number).save(tmp_path / "pets" / folder / f"{number}.png")
            number += 1
    (tmp_path / "pets" / "fish").mkdir()
    (tmp_path / "pets" / "fish" / "notes.txt").write_text("no image")
    return tmp_path / "pets"


def prepared(sources, out, **options) -> DatasetReport:
    *_, last = prepare(sources, out, 8, **options)
    return last.report


def test_folders_with_images_are_classes_in_order_of_their_names(pets):
    dataset, plain = ImageDataset(pets, 8, classes=True), ImageDataset(pets, 8)
    assert dataset.classes == ["cats", "dogs"]
    of = dict(zip(dataset.report.accepted, dataset.labels, strict=True))
    assert {name: of[name] for name in of if name.startswith(("cats", "dogs"))} == {
        "cats/3.png": 1, "cats/4.png": 1, "cats/5.png": 1, "cats/kittens/6.png": 1, "dogs/1.png": 2, "dogs/2.png": 2
    }  # fmt: skip
    assert of["0.png"] == of[".hidden/7.png"] == of["__MACOSX/8.png"] == 0
    assert plain.classes == plain.labels == []
    assert plain.report.accepted == dataset.report.accepted  # the order of the images does not depend on classes
    np.testing.assert_array_equal(plain.images, dataset.images)


def test_an_excluded_folder_is_no_class(pets):
    dataset = ImageDataset(pets, 8, classes=True)
    (pets / "fish" / "9.png").write_bytes((pets / "0.png").read_bytes())
    dataset = ImageDataset(pets, 8, classes=True)
    assert dataset.classes == ["cats", "dogs", "fish"]
    dataset.exclude(pets / "dogs", "samples")
    assert dataset.classes == ["cats", "fish"] and len(dataset.labels) == len(dataset)
    with pytest.raises(ValueError, match="classes need 2 to 1,000 folders of images directly below it"):
        dataset.exclude(pets / "cats", "samples")


def test_a_prepared_dataset_keeps_its_classes(pets, tmp_path):
    report = prepared(pets, tmp_path / "dataset")
    assert report.classes == ["cats", "dogs"] and report.class_counts() == {"cats": 4, "dogs": 2}
    assert report.labels.count(0) == 1  # 0.png; hidden and system files are ignored
    lines = "\n".join(report.summary_lines())
    assert "2 classes, from the folders: cats 4, dogs 2 (fewest)." in lines
    assert "1 without a class, outside these folders." in lines
    dataset = ImageDataset(tmp_path / "dataset", 8, classes=True)
    assert (dataset.classes, dataset.labels) == (report.classes, report.labels)
    assert ImageDataset(tmp_path / "dataset", 8).labels == []


def test_many_classes_are_summarized_by_the_smallest():
    sizes = {f"class {i:02d}": 1 + (i * 7) % 20 for i in range(20)}
    labels = [label for label, size in enumerate(sizes.values(), 1) for _ in range(size)]
    names = [f"{i}.png" for i in range(len(labels))]
    line = DatasetReport(accepted=names, classes=list(sizes), labels=labels)._class_lines()[0]
    smallest = "class 00 1, class 03 2, class 06 3, class 09 4, class 12 5, class 15 6"
    assert line == f"20 classes, from the folders, of 1 to 20 images; the smallest: {smallest}."
    even = DatasetReport(accepted=names[:2], classes=["a", "b"], labels=[1, 2])
    assert even._class_lines() == ["2 classes, from the folders: a 1, b 1."]
    nearly = DatasetReport(accepted=names[:4], classes=["a", "b", "c"], labels=[1, 1, 2, 3])
    assert nearly._class_lines() == ["3 classes, from the folders: a 2, b 1, c 1."]


@pytest.mark.parametrize("wrapper", ["", "pack/"])
def test_the_classes_of_a_zip_may_be_in_one_folder_more(pets, tmp_path, wrapper):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file in sorted(pets.glob("[cd]*/**/*.png")):
            archive.write(file, wrapper + file.relative_to(pets).as_posix())
    report = prepared(tmp_path / "pets.zip", tmp_path / "dataset")
    assert report.classes == ["cats", "dogs"] and 0 not in report.labels


def test_several_folders_are_classes(pets, tmp_path):
    report = prepared([pets / "dogs", pets / "cats"], tmp_path / "dataset")
    assert report.class_counts() == {"cats": 4, "dogs": 2}


@pytest.mark.parametrize(
    "names, classes",
    [
        ([], []),
        (["a.png"], []),
        (["one/a.png", "one/b.png"], []),
        (["one/a.png", "b.png"], []),
        (["pack/one/a.png", "pack/two/b.png"], ["one", "two"]),
        (["pack/one/a.png", "pack/two/b.png", "c.png"], []),  # the root holds an image, so pack is no wrapper
        (["deep/pack/one/a.png", "deep/pack/two/b.png"], []),  # one wrapper at most
        (["b/1.png", "a/2.png", "B/3.png", "ä/4.png"], ["B", "a", "b", "ä"]),
        ([f"{i:04d}/1.png" for i in range(1001)], []),
    ],
)
def test_which_folders_are_classes(names, classes):
    found, labels = find_classes(names, may_be_wrapped=True)
    assert found == classes and (not classes or len(labels) == len(names))


def test_one_folder_is_no_class_unless_it_may_wrap_others():
    assert find_classes(["pack/one/a.png", "pack/two/b.png"]) == ([], [])


def test_names_of_classes_are_printable_short_and_unique():
    folders = ["x" * 80, "x" * 81, "line\nbreak", "\u200bzero width", "日本", "🦊 foxes", "rtl \u202e", "a  b", "a b"]
    names = class_names(folders)
    assert len(set(names)) == len(folders)
    assert all(name.isprintable() and 0 < len(name) <= MAX_CLASS_NAME for name in names)
    assert names[0] == "x" * 60 and names[1] == "x" * 56 + " (2)"
    assert {"日本", "🦊 foxes", "a b", "a b (2)"} <= set(names)


def test_long_folder_names_stay_apart(tmp_path):
    for number, folder in enumerate(("n" * 130 + "a", "n" * 130 + "b")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        image(number).save(tmp_path / "in" / folder / "1.png")
    report = prepared(tmp_path / "in", tmp_path / "dataset")
    assert len(report.classes) == 2 and report.labels == [1, 2]


@pytest.mark.parametrize("label, words", [(3, "a label beyond its classes"), (-1, "'labels' is"), ("1", "'labels' is")])
def test_damaged_labels_are_reported(pets, tmp_path, label, words):
    prepared(pets, tmp_path / "dataset")
    file = tmp_path / "dataset" / "report.json"
    facts = json.loads(file.read_text())
    facts["labels"][0] = label
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=words):
        ImageDataset(tmp_path / "dataset", 8, classes=True)
    facts["labels"] = [1]
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"7 images, report\.json 1 labels"):
        ImageDataset(tmp_path / "dataset", 8, classes=True)
