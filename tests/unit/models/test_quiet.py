"""transformers writes nothing but errors inside the block, and what it did before after it."""

from __future__ import annotations

import pytest
from transformers.utils import logging

from automl_ft.models.quiet import quiet


@pytest.fixture(autouse=True)
def _restore():
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if has_bars else logging.disable_progress_bar)()


@pytest.mark.parametrize("has_bars", [True, False])
def test_the_earlier_settings_come_back(has_bars):
    logging.set_verbosity_info()
    (logging.enable_progress_bar if has_bars else logging.disable_progress_bar)()
    with quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == logging.INFO
    assert logging.is_progress_bar_enabled() is has_bars


def test_the_earlier_settings_come_back_after_an_error():
    logging.set_verbosity_info()
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert logging.get_verbosity() == logging.INFO
