"""Every benchmark of speed, one table after the other: `python -m benchmarks`, or `make bench`.

They measure the whole run by stage, generation, and a DPO step on the tiny model and on a larger shape. On two cores
they take most of an hour, and the machine should do nothing else meanwhile. Each part is also a separate command. The
rows of the DPO steps are kept in `runs/`.
"""

import os
import subprocess
import sys

PARTS = {
    "The whole run by stage": "run_stages",
    "Drawing answers": "generation",
    "A DPO step, tiny model": "dpo_step --model tiny --json runs/dpo_step-tiny.json",
    "A DPO step, SmolLM2-135M's shape": "dpo_step --model smollm2-135m --json runs/dpo_step-smollm2-135m.json",
}

for title, part in PARTS.items():
    print(f"\n## {title}\n", flush=True)
    command = [sys.executable, "-m", *f"benchmarks.{part}".split()]
    subprocess.run(command, check=True, env=os.environ | {"TQDM_DISABLE": "1"})  # no progress bars between the tables
