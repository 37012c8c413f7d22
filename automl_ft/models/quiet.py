"""How transformers is kept from writing progress bars and reports to stderr."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers write errors only inside the block, and no bars.

    Yields:
        Nothing.
    """
    verbosity = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            with warnings.catch_warnings():
                # HF_HUB_DISABLE_PROGRESS_BARS wins over what is asked for here, and says so.
                warnings.simplefilter("ignore", UserWarning)
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
