"""Direct Preference Optimization from a file of preference pairs to a verdict: train, audit, compare.

The functions that most people need, importable from here:

- `load_profile(name, **overrides)`: all settings of a run; `tiny` needs no network and no GPU
- `run(profile, workdir)`: the workbook's whole experiment; returns the report's data
- `train(profile, workdir)`: SFT, DPO and a released adapter, on the profile's pairs
- `import_pairs(path)`: preference pairs from a file in any known format; `read_pairs`, `write_pairs` for our own format
- `audit_pairs(pairs)`: what is wrong with them, and which to keep
- `train_sft`, `train_dpo`: the two trainings alone
- `compare(prompts, responses, score, judge)`: arms compared, with intervals
- `Prompt`, `Response`, `PreferencePair`, `Verdict`: the records
- `DpoKitError`: what all of these raise for something that the caller can put right
"""

import importlib
import logging
import os
import warnings
from typing import Any

__version__ = "0.1.0"

# TRL and the Hub client report usage unless told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# TRL and PEFT use names that transformers has renamed; a reader of a log can do nothing about it.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
# bitsandbytes reports a missing optional CPU speed-up at import as a failure; it is none and frightens readers.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_MODULES = {
    "DpoKitError": "errors", "load_profile": "profiles", "run": "pipeline", "train": "pipeline",
    "Prompt": "records", "Response": "records", "PreferencePair": "records", "Verdict": "records",
    "read_pairs": "jsonl", "write_pairs": "jsonl", "import_pairs": "preferences.importers",
    "audit_pairs": "preferences.audit", "train_sft": "training.sft", "train_dpo": "training.dpo",
    "compare": "evaluation.comparison",
}  # fmt: skip
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch and its libraries take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
