"""Writing files so that each is complete or unchanged, and hashing the content of files."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    A kill or a full disk at any moment leaves either the old file or the new one, never a part of it.
    Lone surrogates, which a model can produce and UTF-8 cannot encode, are written as `?`.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk and would survive a power cut."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder as a file, and writes the names in it to its journal by itself
    # Windows flushes only files that are open for writing, and Linux opens folders only for reading
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where the file is missing, cut off, or holds no JSON object."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(root: Path, *, only: str = "*", skip: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file under `root` whose name matches `only`, by its path relative to `root`, sorted."""
    files = sorted(p for p in root.rglob(only) if p.is_file() and p.name not in skip)
    return {p.relative_to(root).as_posix(): sha256(p) for p in files}
