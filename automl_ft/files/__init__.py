"""Atomic writes, checksums, locks and the files that ship with the package."""
