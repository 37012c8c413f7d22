"""What identifies the contents of files: SHA-256, as hex. A leaf."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sha256_bytes", "sha256_file", "sha256_files"]


def sha256_bytes(data: bytes) -> str:
    """Return the checksum of bytes.

    Args:
        data: The bytes; may be empty.

    Returns:
        64 lower-case hex digits.
    """
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the checksum of a file, read in pieces.

    Args:
        path: The file.

    Returns:
        64 lower-case hex digits.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return one checksum of several files, by their names and contents.

    Args:
        paths: The files, in any order; folders do not count, names do.

    Returns:
        64 lower-case hex digits; for a single file not the same as `sha256_file`.

    Raises:
        OSError: A file cannot be read.
    """
    lines = sorted(f"{sha256_file(path)}  {Path(path).name}\n" for path in paths)
    return sha256_bytes("".join(lines).encode("utf-8"))
