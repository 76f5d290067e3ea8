"""What takes hours: kills by the hundred, fuzzing, simulated coverage, wrong changes, every notebook in a browser.

    python -m benchmarks.soak [NAME ...] [--again]          or: make soak

Each job is a command of its own. What it prints is kept in `runs/soak/NAME.log`, and how it ended in
`runs/soak/done.json`; a job that has passed on the code as it is now is not run again, so that the same command goes on
where it was stopped. The figures that matter are copied to LOG.md by whoever reads them. The tests, and so CI, run a
short form of each job, which is named beside it.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dpo_kit.files import hashes, json_object, write_atomically

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "runs" / "soak"


@dataclass(frozen=True)
class Job:
    """A command of `python -m`, the file of the test that runs a short form of it, and how often it is repeated."""

    command: str
    short: str
    times: int = 1


JOBS = {
    "kill-training": Job("benchmarks.kill_training --kills 300", "tests/training/test_resuming.py"),
    "kill-annotation": Job("benchmarks.kill_annotation --kills 400", "tests/preferences/test_labels.py"),
    "kill-tests": Job("pytest -q -m slow -k kill tests", "tests/test_workspace.py", 10),
    "fuzz-pairs": Job("benchmarks.fuzz_readers pairs --minutes 20", "tests/test_records.py"),
    "fuzz-import": Job("benchmarks.fuzz_readers import --minutes 40", "tests/preferences/importers/test_importers.py"),
    "fuzz-reply": Job("benchmarks.fuzz_readers reply --minutes 10", "tests/preferences/judges/test_judging.py"),
    "fuzz-score": Job("benchmarks.fuzz_readers score --minutes 10", "tests/preferences/judges/test_judging.py"),
    "audit": Job("benchmarks.audit_faults --pairs 10000", "tests/preferences/test_audit.py"),
    "coverage": Job("benchmarks.coverage --evaluations 10000", "tests/evaluation/test_statistics_coverage.py"),
    "mutants": Job("benchmarks.mutants --count 200", "tests/test_soak.py"),
    "notebooks": Job("benchmarks.notebooks_in_browser", "tests/workbook/figures/test_sliders_browser.py"),
}


def main() -> int:
    """Run the jobs that were named, or all; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(JOBS)}; default: all")
    parser.add_argument("--again", action="store_true", help="also what has passed already")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - JOBS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no such job")
    passed = [passes(name, arguments.again) for name in arguments.names or JOBS]
    return int(not all(passed))


def passes(name: str, again: bool = False) -> bool:
    """Whether a job passes on the code as it is; runs it where that is not known, and says how it ended."""
    job, code, done = JOBS[name], digest(), json_object(LOGS / "done.json")
    ended = done.get(name, {})
    if again or ended.get("code") != code or ended.get("exit_code") != 0:
        print(f"{name}: python -m {job.command}", flush=True)
        LOGS.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with (LOGS / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", *job.command.split()]
            runs = (subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) for _ in range(job.times))
            result = next((run.returncode for run in runs if run.returncode), 0)  # stops at the first that fails
        ended = {"code": code, "exit_code": result, "minutes": round((time.monotonic() - started) / 60, 1)}
        write_atomically(LOGS / "done.json", json.dumps({**done, name: ended}, indent=1) + "\n")
    how = "passed" if ended["exit_code"] == 0 else f"FAILED with {ended['exit_code']}"
    print(f"{name}: {how} after {ended['minutes']} minutes; see {(LOGS / name).relative_to(ROOT)}.log", flush=True)
    return ended["exit_code"] == 0


def digest() -> str:
    """A hash of all source files, by which a changed tree is known."""
    folders = {folder: hashes(ROOT / folder, only="*.py") for folder in ("dpo_kit", "benchmarks", "tests", "notebooks")}
    return hashlib.sha256(json.dumps(folders).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
