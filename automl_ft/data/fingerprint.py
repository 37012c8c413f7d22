"""What identifies a text, a split and a whole data set: digests that are equal on all machines."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["combined_fingerprint", "rows_fingerprint", "text_key"]


def text_key(texts: Sequence[str]) -> bytes:
    """Return what two rows share when people would call their texts the same.

    Unicode form, case and runs of white space make no difference; punctuation does.

    Args:
        texts: The text fields of one row.

    Returns:
        A digest of 16 bytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        digest.update(_framed(plain))
    return digest.digest()


def rows_fingerprint(texts: Iterable[Sequence[str]], labels: Iterable[str]) -> str:
    """Return the fingerprint of rows in their order.

    Args:
        texts: The text fields of each row.
        labels: The class name of each row, as many as there are rows.

    Returns:
        SHA-256 in hex; equal only if every text and class name is equal, in the same order.
    """
    digest = hashlib.sha256()
    for fields, label in zip(texts, labels, strict=True):
        digest.update(len(fields).to_bytes(8, "little"))
        for field in (*fields, label):
            digest.update(_framed(field))
    return digest.hexdigest()


def combined_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """Return one fingerprint for all splits.

    Args:
        fingerprints: Fingerprint by split; the order of the keys makes no difference.

    Returns:
        SHA-256 in hex.
    """
    digest = hashlib.sha256()
    for name in sorted(fingerprints):
        digest.update(_framed(name))
        digest.update(_framed(fingerprints[name]))
    return digest.hexdigest()


def _framed(text: str) -> bytes:
    """Return the text's bytes after their number, so that borders cannot be confused."""
    data = text.encode("utf-8", errors="surrogatepass")
    return len(data).to_bytes(8, "little") + data
