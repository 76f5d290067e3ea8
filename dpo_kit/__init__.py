"""Companion package of the DPO workbook: preference data, QLoRA DPO, and a three-way comparison."""

import logging
import os
import warnings

__version__ = "0.1.0"

# TRL and the Hub client report usage unless told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# TRL and PEFT use names that transformers has renamed; a reader of a log can do nothing about it.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
# bitsandbytes reports a missing optional CPU speed-up at import as a failure; it is none and frightens readers.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
