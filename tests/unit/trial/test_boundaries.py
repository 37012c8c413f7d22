"""One pass gives what a pass for each boundary gives, bit by bit, from wherever it begins."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from automl_ft.config.study import ModelConfig
from automl_ft.models.capabilities import Capabilities, find_capabilities
from automl_ft.models.load import LoadedModel, load_model, resolve
from automl_ft.models.packed_model import PackedInputs
from automl_ft.models.packing import pack
from automl_ft.models.padded_model import PaddedInputs
from automl_ft.trial.boundaries import prefixes
from automl_ft.trial.inputs import Inputs

TINY = runpy.run_path(str(Path(__file__).parents[1] / "models" / "conftest.py"))
ROWS = [torch.arange(length) % 90 + 7 for length in (13, 9, 4, 1)]
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=[n for n in TINY["ARCHITECTURES"] if n != "albert"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, Capabilities]:
    """Load a tiny model of an architecture; ALBERT's has a single block."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModel.from_config(TINY["tiny_config"](request.param))
    TINY["_perturb"](model)
    model.save_pretrained(folder)
    TINY["tiny_tokenizer"](request.param).save_pretrained(folder)
    config = ModelConfig(checkpoint=str(folder))
    found = load_model(resolve(config), config, labels=("a", "b"), dropout=0.3, seed=0)
    return found, find_capabilities(found.model, found.layer_map)


def packed_inputs() -> PackedInputs:
    packing = pack(np.asarray([len(row) for row in ROWS]), torch.device("cpu"))
    filler = torch.zeros(packing.num_tokens - sum(map(len, ROWS)), dtype=torch.int64)
    return PackedInputs(input_ids=torch.cat([*ROWS, filler]), token_type_ids=None, packing=packing)


def padded_inputs() -> PaddedInputs:
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ROWS], batch_first=True)
    return PaddedInputs(
        arguments={"input_ids": pad(ROWS, batch_first=True), "attention_mask": mask}
    )


@pytest.fixture(params=["packed", "padded"])
def run(
    request: pytest.FixtureRequest, loaded: tuple[LoadedModel, Capabilities]
) -> Iterator[Callable[[torch.dtype], tuple[Any, Inputs]]]:
    """Return a function that gives a view in a type, and inputs."""
    found, capabilities = loaded
    if request.param == "packed" and capabilities.packed is None:
        pytest.skip("It does not run packed.")

    def view_of(dtype: torch.dtype) -> tuple[Any, Inputs]:
        model = found.model.to(dtype).eval()  # type: ignore[arg-type]
        if request.param == "packed":
            return capabilities.packed_model(model, found.layer_map), packed_inputs()
        return capabilities.padded_model(model, found.layer_map), padded_inputs()

    yield view_of
    found.model.to(torch.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", TYPES)
def test_boundaries_that_are_passed_give_what_a_pass_of_their_own_gives(
    run: Callable[[torch.dtype], tuple[Any, Inputs]], dtype: torch.dtype
) -> None:
    view, inputs = run(dtype)
    found = prefixes(view, inputs, [3, 1, 2])
    assert sorted(found) == [1, 2, 3]
    for number, states in found.items():
        assert states.dtype == dtype
        assert torch.equal(states, view.prefix(inputs, number))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("begin", [1, 2])
def test_a_pass_from_stored_activations_gives_what_one_from_the_tokens_gives(
    run: Callable[[torch.dtype], tuple[Any, Inputs]], begin: int, dtype: torch.dtype
) -> None:
    view, inputs = run(dtype)
    stored = view.prefix(inputs, begin)
    wanted = range(begin + 1, 4)
    found = prefixes(view, inputs, wanted, stored, begin)
    assert sorted(found) == list(wanted)
    num_tokens = sum(map(len, ROWS))
    for number, states in found.items():
        expected = view.prefix(inputs, number)
        # Filler may hold anything.
        assert torch.equal(states[:num_tokens], expected[:num_tokens])


def test_nothing_stays_behind_in_the_model(
    run: Callable[[torch.dtype], tuple[Any, Inputs]],
) -> None:
    view, inputs = run(torch.float32)
    before = view.prefix(inputs, 3)
    stored = view.prefix(inputs, 1)
    prefixes(view, inputs, [2, 3], stored, 1)
    with pytest.raises(RuntimeError):
        prefixes(view, inputs, [2, 3], stored[:, :5], 1)
    assert torch.equal(view.prefix(inputs, 3), before)
    for name in view.layer_map.block_modules:
        block = view.model.get_submodule(name)
        assert not block._forward_pre_hooks
        assert "forward" not in vars(block)
