"""Which version is this? A leaf, so that every layer can store it."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
