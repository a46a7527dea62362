"""One damaged run, checkpoint or folder affects neither the page nor the others: every field of every JSON file in a
run folder and in a checkpoint folder, and every file as a whole, is damaged one at a time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gradio as gr
import orjson
import pytest
from tiny_runs import make_run

from dp.checkpoints.schema import CheckpointError
from dp.serving.engine import Engine
from dp.training import processes, state
from dp.training.presets import Settings
from dp.training.run_folder import RunFolder
from dp.training.trainer import Trainer
from dp.ui.components.run_board import run_board
from dp.ui.components.upload.upload import images_of, value_of_run
from dp.ui.sampling import page_values
from dp.ui.training import publish, remote_training
from dp.ui.training.uploads import Upload

REMOTE = {"repo": "ann/dp-x", "flavor": "a10g-small", "timeout": 7200, "launch": "ab", "is_active": True}
REMOTE |= {"asked": ["pause"], "job": "12", "url": "https://huggingface.co/jobs/ann/12"}
DEEP: Any = 0
for _ in range(300):
    DEEP = [DEEP]
VALUES = [None, True, "", "\ud800", "x" * 2000, 0, -1, 0.5, 1e308, 2**64, 10**400, math.nan, [], {}, DEEP]
VALUES += [{"\udce9": ["\ud83d", None]}]
GONE = object()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Create DP_HOME with two trained runs, and a folder with two checkpoints."""
    place = tmp_path_factory.mktemp("damage")
    run = make_run(place, "Whole", train_num_steps=20, save_and_sample_every=10)
    with run.hold_lock():
        run.update_status(state="running", pid=1, launch="", started=1.0)
        Trainer.from_run(run.path).train()
    processes.duplicate(run, place / "home", name="Other")
    run.update_status(remote=REMOTE)
    shutil.copytree(run.checkpoint(20), place / "bundled" / "other")
    shutil.rmtree(place / "bundled" / "other" / "training-state")
    for folder in ("home", "bundled"):
        shutil.copytree(place / folder, place / f"{folder} before", symlinks=True)
    return place


@pytest.fixture
def place(made, monkeypatch):
    monkeypatch.setenv("DP_HOME", str(made / "home"))
    yield made
    for folder in ("home", "bundled"):
        shutil.rmtree(made / folder)
        shutil.copytree(made / f"{folder} before", made / folder, symlinks=True)


def victim(place: Path) -> RunFolder:
    return next(RunFolder(path) for path in (place / "home").glob("whole-*"))


def encoded(value: Any) -> Any:
    """Return `value` after encoding it as JSON, as Python and as Gradio do."""
    orjson.dumps(value)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return value


def everything(place: Path, engine: Engine) -> dict[str, Any]:
    """Request every list and detail that the page shows, and return what concerns the undamaged run and checkpoints."""
    other = next(path.name for path in (place / "home").glob("other-*"))
    looked = encoded(run_board.poll({"run": other}, None))
    [line] = [line for line in looked.pop("runs") if line["id"] == other]
    entries = page_values.visible_checkpoints(engine)
    encoded([[entry.name, entry.problem] for entry in entries])
    names = [entry.name for entry in entries if not entry.problem]
    with patch.object(page_values, "visible_checkpoints", lambda engine: entries):  # list them once
        for name in [name for name in names if name in ("other", "Whole/000020")]:
            encoded([page_values.describe(engine, name), page_values.schedule_choices(engine, name)])
        config = page_values.config_of(engine, "other")
    del looked["runs_mark"]
    return looked | {"line": line, "config": config}


def details(run: RunFolder) -> None:
    """Request everything about the damaged run; every error must be one that the page can show."""
    looked = encoded(run_board.poll({"run": run.id}, None))
    if any(line["id"] == run.id for line in looked["runs"]):
        assert looked["facts"]["id"] == run.id and looked["facts"]["description"]
        encoded([publish.offer({"run": run.id}, None), publish.card_facts(run), run_board.free_name("Whole")])
    publish.newest_samples(run, 20)
    try:
        shown, settings = value_of_run(run)
        encoded([shown, {**images_of(run), "path": None}, vars(settings)])
    except (ValueError, OSError) as error:
        encoded(str(page_values.user_error(error)))


def resumed(run: RunFolder) -> None:
    for milestone in state.resumable_steps(run):
        try:
            state.read_state(run, milestone)
        except CheckpointError as error:
            encoded(str(error))


def fields(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of each value within a JSON value, beginning with the whole."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from fields(child, (*path, key))


def with_(value: Any, path: tuple, new: Any) -> Any:
    """Return a copy of `value` with `new` at `path`, or without that entry if `new` is GONE."""
    if not path:
        return {} if new is GONE else new
    copy = value.copy()
    if new is GONE and len(path) == 1:
        copy.pop(path[0])
    else:
        copy[path[0]] = with_(value[path[0]], path[1:], new)
    return copy


FILES = ["config.json", "status.json", "dataset/report.json", "checkpoints/000020/config.json", "metrics.jsonl"]
FILES += ["checkpoints/000020/training-state/state.json"]
ASKED = {"training-state": resumed, "000020": lambda run: None}  # in addition to the lists


@pytest.mark.parametrize("name", FILES)
def test_an_invalid_value_in_any_field_affects_nothing_else(place, name):
    engine = Engine(place / "bundled", device="cpu", runs=place / "home")
    before = everything(place, engine)
    file, ask = victim(place).path / name, ASKED.get(Path(name).parent.name, details)
    first, *rest = file.read_text(encoding="utf-8").split("\n") if name == "metrics.jsonl" else [file.read_text()]
    whole, cases = json.loads(first), 0
    for path in fields(whole):
        for new in (*VALUES, GONE):
            file.write_text("\n".join([json.dumps(with_(whole, path, new)), *rest]))
            os.utime(file, ns=(cases, cases))  # a new time, so that the file is read again
            try:
                assert everything(place, engine) == before
                ask(victim(place))
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, path))} = {new!r:.60}") from error
            cases += 1
    assert cases > 100


# ----------------------------------------------------------------------------
# Whole files and folders

TEXTS = [b"", b"\x00\xff\xfe\x80" * 40, b"{", b"[]", b"null", b'"text"', b"3", b"[" * 100_000, b"9" * 5000]
TEXTS += [b"\xef\xbb\xbf{}", b'{"a": 1}', b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'shape': (" + b"9" * 99 + b",)}"]


def folder_instead(path: Path) -> None:
    remove(path)
    (path / "inside").mkdir(parents=True)


def loop_instead(path: Path) -> None:
    remove(path)
    path.symlink_to(path.name)


def file_instead(path: Path) -> None:
    remove(path)
    path.write_bytes(b"a file")


def pipe_instead(path: Path) -> None:
    remove(path)
    os.mkfifo(path)


def device_instead(path: Path) -> None:
    remove(path)
    path.symlink_to("/dev/zero")


def terabyte(path: Path) -> None:
    if path.is_file():
        os.truncate(path, 2**40)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def everywhere(run: RunFolder) -> list[Path]:
    """Return every file and folder of the run, except those of older checkpoints."""
    found = [path.relative_to(run.path) for path in sorted(run.path.rglob("*"))]
    return [path for path in found if "000010" not in path.name and "000010" not in path.parts]


REPLACED = [folder_instead, loop_instead, file_instead, pipe_instead, device_instead, terabyte, remove]
REPLACED += [lambda path, text=text: path.is_file() and path.write_bytes(text) for text in TEXTS]


@pytest.mark.parametrize("damage", REPLACED, ids=[getattr(d, "__name__", "") for d in REPLACED])
def test_any_file_or_folder_may_be_damaged(place, damage, monkeypatch):
    engine = Engine(place / "bundled", device="cpu", runs=place / "home")
    before, kept = everything(place, engine), place / "kept"
    run = victim(place)
    (run.path / "control").mkdir()
    run.update_status(remote=None)
    for name in everywhere(run):
        path = run.path / name
        os.rename(path, kept)
        shutil.copytree(kept, path) if kept.is_dir() else shutil.copy2(kept, path)
        try:
            damage(path)
            assert everything(place, engine) == before
            details(run)
            resumed(run)
            encoded([run_board.command({"run": run.id, "verb": verb}, None) for verb in ("pause", "sample")])
        except Exception as error:
            raise AssertionError(f"{name}") from error
        finally:
            remove(path)
            os.rename(kept, path)
    assert everything(place, engine) == before


def test_a_training_process_reports_an_invalid_config(place):
    run = victim(place)
    run.update_status(remote=None)
    config = run.config()
    config["trainer"] |= {"betas": [0.9, 0.99], "convert_image_to": "RGB", "amp": False, "seed": 0, "weight_decay": 0.0}
    for path in fields(config["trainer"]):
        for new in VALUES:
            run.config_file.write_text(json.dumps(with_(config, ("trainer", *path), new)))
            with suppress(ValueError):
                Trainer.from_run(run.path)


# ----------------------------------------------------------------------------
# Names that cannot be encoded


def renamed(path: Path, name: bytes) -> Path:
    return path.rename(path.parent / os.fsdecode(name))


@pytest.mark.skipif(os.name == "nt", reason="there all names are UTF-16")
def test_folders_whose_names_are_not_utf8_are_shown_and_break_nothing(place):
    run = victim(place)
    run.update_status(remote=None)
    processes.rename(run, "Café")
    twin = place / "home" / os.fsdecode(b"caf\xe8")
    shutil.copytree(run.path, twin)
    (twin / "config.json").unlink()  # it is then named after its folder
    run = RunFolder(renamed(run.path, b"caf\xe9"))
    shutil.copytree(place / "bundled" / "other", place / "bundled" / os.fsdecode(b"mod\xe8l"))
    renamed(shutil.copytree(run.checkpoint(20), run.path / "checkpoints" / "copy"), b"copi\xe9")
    engine = Engine(place / "bundled", device="cpu", runs=place / "home")

    lines = {line["id"]: line["name"] for line in encoded(run_board.poll({}, None))["runs"]}
    assert len(lines) == 3 and lines[run.id] == "Café" and run.id.startswith("caf\ufffd")
    [other] = [name for name in lines.values() if name.startswith("caf\ufffd")]
    assert other != run.id
    names = encoded([entry.name for entry in page_values.visible_checkpoints(engine)])
    assert len(set(names)) == len(names) == 7 and sum("\ufffd" in name for name in names) == 4
    assert encoded(page_values.usable_checkpoints(engine)) == ["other"]  # safetensors needs UTF-8 paths
    assert all(
        "not valid UTF-8" in entry.problem for entry in page_values.visible_checkpoints(engine) if entry.name != "other"
    )
    encoded(page_values.describe(engine, "other"))
    everything(place, engine)
    details(run)

    assert run_board.command({"run": run.id, "verb": "rename", "name": "Thé"}, None) == {}
    assert run_board.run_of(run.id).name == "Thé" and run_board.run_of(run.id).path == run.path
    said = encoded(run_board.command({"run": run.id, "verb": "resume"}, None))
    assert "the path of a run's folder must be text that UTF-8 can encode" in said["problem"]
    assert run_board.command({"run": run.id, "verb": "delete"}, None) == {}
    assert twin.is_dir() and not run.path.exists()


HALF = "cat\ud800"


def test_a_lone_surrogate_is_rejected(place, monkeypatch):
    engine, run = Engine(place / "bundled", device="cpu", runs=place / "home"), victim(place)
    before = everything(place, engine)
    said = encoded(run_board.command({"run": run.id, "verb": "rename", "name": HALF}, None))
    assert said["problem"] == r"a run's name must be text that UTF-8 can encode, got 'cat\ud800': choose another name"
    for name in (None, 3, ["x"], {}):
        assert "must be text" in run_board.command({"run": run.id, "verb": "rename", "name": name}, None)["problem"]
    for what in (
        lambda: processes.duplicate(run, place / "home", name=HALF),
        lambda: Settings(name=HALF),
        lambda: Upload.create().write_pieces([{"file": 0, "offset": 0, "data": "", "name": HALF}]),
        lambda: page_values.parse_settings(engine, HALF, 1, 1, "ddim", "trained", 0, 0, 0, False),
        lambda: page_values.parse_settings(engine, "other", 1, 1, HALF, "trained", 0, 0, 0, False),
        lambda: page_values.parse_settings(engine, "other", 1, 1, "ddim", HALF, 0, 0, 0, False),
        lambda: page_values.parse_settings(engine, "other", 1, 1, "ddim", "trained", 0, 0, 0, False, walk_to=HALF),
        lambda: page_values.to_page_values(engine, {"checkpoint": HALF}),
        lambda: page_values.to_page_values(engine, {"noise_schedule": HALF, "schedule_kwargs": {HALF: HALF}}),
    ):
        with pytest.raises((ValueError, gr.Error)) as caught:
            what()
        encoded(str(caught.value))
    asked = {"run": run.id, "checkpoint": 20, "repo": "ann/cats", "private": False, "license": "", "token": "hf_x"}
    for key in ("run", "checkpoint", "repo", "token"):
        assert encoded(publish.publish(asked | {key: HALF}, None))["problem"]
    rented = {"run": run.id, "flavor": "x", "timeout": "1h", "token": "hf_x"}
    for key in ("run", "timeout", "token"):
        assert encoded(remote_training.rent(rented | {key: HALF}, None))["problem"]
    for asked in (
        {"runs_mark": HALF, "run": HALF, "facts_mark": HALF},
        {"run": run.id, "offset": 10**400, "last_sample": 10**400},
    ):
        encoded(run_board.poll(asked, None))
    assert everything(place, engine) == before
