"""Questions about this machine: how much memory this process has used, and whether a person can see a notebook page."""

import os
import sys

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory_mb() -> int:
    """The most memory that this process has held until now, in MB; the GPU's peak is added where CUDA was used."""
    if resource is None:
        peak = psutil.Process().memory_info().peak_wset  # bytes; only Windows counts it
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux kilobytes
    megabytes = peak / (1 << 20)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        megabytes += torch.cuda.max_memory_allocated() / (1 << 20)
    return round(megabytes)


def someone_is_there() -> bool:
    """Whether a notebook page started the kernel. Jupyter's server sets a variable that nbconvert and nbmake do not."""
    return "JPY_SESSION_NAME" in os.environ
