"""Writing a file so that it is whole or absent, and hashing what files hold."""

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
        return  # Windows opens no folder as a file; it writes names to its journal by itself
    # Windows flushes only what is open for writing, and Linux opens a folder only for reading
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
