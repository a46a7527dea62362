"""Measure the world of paths: how many demonstrations the expert draws in a second on one core, and how good they are.

python benchmarks/worlds.py --count 10000
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before NumPy is loaded
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from measure import print_table

from dp.worlds.expert import draw_demonstrations, find_ways, plan_many
from dp.worlds.metrics import judge
from dp.worlds.scenes import random_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="demonstrations (default %(default)s)")
    count = parser.parse_args().count

    draw_demonstrations(1, seed=0)
    began = time.process_time()  # of this process alone, whatever else runs
    scenes, paths = draw_demonstrations(count, seed=1)
    took = time.process_time() - began
    outcomes = judge(scenes, paths)
    drawn = random_scenes(count, np.random.default_rng(2))
    good = find_ways(drawn).good.sum(axis=1)
    planned = plan_many(drawn, np.random.default_rng(3))[1]
    rows = [
        ("demonstrations per second of processor time", count / took),
        ("paths that succeed, %", 100 * outcomes.succeeds.mean()),
        ("clearance, 1st percentile", np.percentile(outcomes.clearance, 1)),
        ("clearance, median", np.median(outcomes.clearance[np.isfinite(outcomes.clearance)])),
        ("scenes without a way, %", 100 * (good == 0).mean()),
        ("scenes with a way and no path, %", 100 * ((good > 0) & ~planned).mean()),
        ("scenes with several good ways, %", 100 * (good > 1).mean()),
        ("good ways of a scene, mean", good.mean()),
    ]
    print_table(("measure", "value"), [(name, float(value)) for name, value in rows])


if __name__ == "__main__":
    main()
