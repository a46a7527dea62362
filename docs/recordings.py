"""Record what the page shows before the visitor has made anything: a run and a comparison by the model with which the
page begins, and a training run on the images of faces-32.

    python docs/recordings.py run
    python docs/recordings.py comparison
    python docs/recordings.py training runs/example --device "one core of an AMD EPYC server"

`training` first trains the run, or resumes it, which takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a clone without installing

from dp.serving.engine import Engine
from dp.serving.frames import Frame
from dp.serving.handle import RunHandle
from dp.training.run_folder import RunFolder
from dp.ui.components.run_board.run_board import facts
from dp.ui.sampling import page_values
from dp.ui.sampling.comparison import ComparisonResult, requests_of, shared_settings
from dp.ui.sampling.variants import SHORT_RUNS, make_variants
from dp.ui.streaming import curve_of
from dp.ui.tabs import compare, denoise, train
from dp.ui.web import recording

CHECKPOINTS = ROOT / "checkpoints"
FACES = CHECKPOINTS / "faces-32"
SEED, STEPS = 7, [5, 10, 20]  # of the comparison
SAVE_EVERY, MOST_RECORDS = 100, 100  # of the training run


def record_frame(frame: Frame) -> dict[str, Any]:
    """Return a frame as the player keeps it."""
    levels = {"time": round(frame.time, 4), "log_snr": round(frame.log_snr, 3)}
    return recording.record_frame(frame) | levels


def record_run(handle: RunHandle, until: int) -> dict[str, Any]:
    """Return a run as a player shows it, up to step `until`."""
    about = {"timesteps": handle.trajectory.settings.timesteps, "images": handle.trajectory.settings.batch_size}
    return about | {"frames": [record_frame(frame) for frame in handle.trajectory.frames if frame.index <= until]}


def record_denoising(engine: Engine, name: str, folder: Path) -> None:
    """Record a run of the model `name` in the page's own settings, with each class in turn."""
    has_classes = page_values.class_choices(page_values.config_of(engine, name))
    values = page_values.to_page_values(engine, {"checkpoint": name, "seed": 0})
    values |= {"label": page_values.EACH} if has_classes else {}
    handle = engine.submit(*reversed(page_values.parse_settings(engine, **page_values.arguments_of(values))))
    while handle.is_live:
        time.sleep(0.01)
    content = {"settings": " · ".join(page_values.describe_run(handle.provenance))}
    content |= curve_of(handle)
    write(folder / denoise.RECORDING, content | record_run(handle, handle.frame.index))


def record_comparison(engine: Engine, name: str, folder: Path) -> None:
    """Record step k of a long run beside a whole run of k steps, of the model `name`."""
    chosen = {"seed": SEED, "batch_size": compare.IMAGES, "timesteps": compare.LONG_RUN}
    values = page_values.to_page_values(engine, {"checkpoint": name} | chosen)
    variants = make_variants(engine, SHORT_RUNS, STEPS, page_values.arguments_of(values))
    result, requests = ComparisonResult(variants), requests_of(variants)
    handles = dict(zip(requests, engine.submit_all(list(requests.values())), strict=True))
    while len(result.ended) < len(variants):
        time.sleep(0.01)
        for i, variant in enumerate(variants):
            frames = handles[variant.run].trajectory.frames
            result.end(i, next((frame for frame in list(frames) if frame.index == variant.calls), None))
    while any(handle.is_live for handle in handles.values()):
        time.sleep(0.01)
    result.whole |= {run: handle.frame.x0 for run, handle in handles.items()}
    content = {
        "runs": [record_run(handles[run], max(v.calls for v in variants if v.run == run)) for run in requests],
        "variants": [
            {"label": v.label, "run": list(requests).index(v.run)} | ({"until": v.until} if v.until else {})
            for v in variants
        ],
        "table": result.table(is_over=True) | {"settings": shared_settings([h.provenance for h in handles.values()])},
    }
    write(folder / compare.RECORDING, content)


def train_example(run: Path) -> None:
    """Train on the faces with the preset Small."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(FACES / "images.zip") as images:
        images.extractall(faces := Path(folder) / "faces")  # after which the dataset is named
        command = [sys.executable, "-m", "dp", "train", str(faces), "--out", str(run)]
        subprocess.run([*command, "--name", "112 faces", "--save-every", str(SAVE_EVERY)], check=True, cwd=ROOT)


def record_training(run: RunFolder, device: str, folder: Path) -> None:
    """Record a finished run."""
    records, offset = [], 0
    while (chunk := run.metrics(offset))[0]:
        records, offset = records + chunk[0], chunk[1]
    records = [record for record in records if "loss" in record]
    every = records[0]["step"]
    seconds = sum(every * run.config()["trainer"]["train_batch_size"] / r["images_per_s"] for r in records)
    shown = facts(run) | {"state": "recorded", "message": "", "checkpoints": []}
    shown["description"] += f" · {seconds / 60:.0f} minutes on {device}"
    samples = [
        [step, recording.webp_uri(Image.open(run.sample(step)), recording.IMAGE_QUALITY)] for step in run.sample_steps()
    ]
    thinned = records[:: -math.ceil(len(records) / MOST_RECORDS)][::-1]
    content = {"facts": shown, "records": list(map(rounded, thinned)), "samples": samples}
    write(folder / train.RECORDING, content)


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the chart of the loss shows of a record."""
    short = {"step": record["step"], "loss": float(f"{record['loss']:.3g}")}
    levels = {level: float(f"{loss:.3g}") for level, loss in record.get("buckets", {}).items()}
    return short | ({"buckets": levels} if levels else {})


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "comparison", "training"])
    parser.add_argument("run", type=Path, nargs="?", help="the folder of the training run")
    parser.add_argument("--device", default="a device that was not named", help="what the run was trained on")
    args = parser.parse_args()
    engine = Engine(CHECKPOINTS)
    first = page_values.usable_checkpoints(engine)[0]
    if args.what == "run":
        record_denoising(engine, first, CHECKPOINTS / first)
    elif args.what == "comparison":
        record_comparison(engine, first, CHECKPOINTS / first)
    elif args.run is None:
        parser.error("training needs the folder of the run")
    else:
        train_example(args.run)
        record_training(RunFolder(args.run), args.device, FACES)


if __name__ == "__main__":
    main()
