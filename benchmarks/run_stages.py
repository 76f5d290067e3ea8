"""Where the time and the memory of the whole path go, stage by stage, over several fresh runs.

    python -m benchmarks.run_stages [--repeats 3]

Each run is a process of its own in a new workdir, so that start-up time and peak memory are those of a user. `again` is
a second run in the same workdir, which verifies the stages and builds none. Prints a Markdown table of medians and
ranges.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    runs = [measure(seed) for seed in range(parser.parse_args().repeats)]
    print("| part | median | range |\n| --- | ---: | ---: |")
    for part in runs[0]:
        values = [run[part] for run in runs]
        print(f"| {part} | {statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f} |")


def measure(seed: int) -> dict[str, float]:
    """One fresh run and one verified one: seconds by stage and in all, and peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        whole, again = (_seconds(workdir, seed) for _ in range(2))
        report = json.loads((workdir / "report.json").read_text())
    stages = {f"{stage}, s": seconds for stage, seconds in report["timings_s"].items()}
    rest = whole - sum(stages.values())
    return {
        **stages,
        "start-up and report, s": rest,
        "whole run, s": whole,
        "again, s": again,
        "peak memory, MB": report["peak_memory_mb"],
    }


def _seconds(workdir: Path, seed: int) -> float:
    command = [sys.executable, "-m", "dpo_kit", "run", "--profile", "tiny"]
    started = time.perf_counter()
    subprocess.run([*command, "--workdir", str(workdir), "--seed", str(seed)], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
