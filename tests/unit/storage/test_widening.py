"""Distributions grow, and nothing else."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from automl_ft.errors import StudyExistsError
from automl_ft.storage.widening import widen

Float, Int, Choice = FloatDistribution, IntDistribution, CategoricalDistribution


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        (Float(1.0, 2.0), Float(0.5, 1.5), Float(0.5, 2.0)),
        (Float(1e-5, 1e-3, log=True), Float(1e-4, 1e-2, log=True), Float(1e-5, 1e-2, log=True)),
        (Float(0.0, 1.0, step=0.1), Float(0.3, 1.3, step=0.1), Float(0.0, 1.3, step=0.1)),
        (Int(1, 3), Int(2, 8), Int(1, 8)),
        (Int(8, 64, log=True), Int(4, 32, log=True), Int(4, 64, log=True)),
        (Int(8, 24, step=8), Int(16, 64, step=8), Int(8, 64, step=8)),
        (Choice(["a", None]), Choice(["a", None, "b"]), Choice(["a", None, "b"])),
        (Choice(["a", "b", "c"]), Choice(["a", "b"]), Choice(["a", "b", "c"])),
    ],
)
def test_both_fit_into_the_result(old, new, both):
    assert widen("x", old, new) == both
    assert widen("x", new, old) == both


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (Choice(["a", "b"]), Choice(["b", "a"]), "choices may only be appended"),
        (Choice(["a", "b"]), Choice(["c", "a", "b"]), "choices may only be appended"),
        (Float(1.0, 2.0), Float(1.0, 2.0, log=True), "log and step"),
        (Float(1.0, 2.0), Float(1.0, 2.0, step=0.5), "log and step"),
        (Int(1, 9), Int(1, 9, step=2), "log and step"),
        (Int(8, 64, step=8), Int(4, 60, step=8), "low must move by whole steps"),
        (Float(0.0, 1.0, step=0.5), Float(0.2, 1.2, step=0.5), "low must move by whole steps"),
        (Int(1, 2), Float(1.0, 2.0), "kind"),
        (Float(1.0, 2.0), Choice([1.0, 2.0]), "kind"),
    ],
)
def test_what_cannot_grow_is_refused_with_both_and_the_rule(old, new, rule):
    with pytest.raises(StudyExistsError, match=rule) as caught:
        widen("batch_size", old, new)
    for part in ("`batch_size`", str(old), str(new), "another name"):
        assert part in str(caught.value)
