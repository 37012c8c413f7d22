"""The head of each architecture as steps, and many heads at once against one at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from automl_ft.models.capabilities import find_capabilities
from automl_ft.models.head_chain import HeadChain, find_head_chain
from automl_ft.models.load import LoadedModel

DENSE = ["dropout", "linear", "tanh", "dropout", "linear"]
STEPS = {
    "bert": ["dropout", "linear"],
    "distilbert": ["linear", "relu", "dropout", "linear"],
    "roberta": DENSE,
    "xlm-roberta": DENSE,
    "albert": ["dropout", "linear"],
    "electra": ["dropout", "linear", "gelu", "dropout", "linear"],
    "deberta-v2": ["dropout", "linear", "gelu", "dropout", "linear"],
    "xlnet": ["linear", "tanh", "dropout", "linear"],
    "gpt2": ["linear"],
    "llama": ["linear"],
    "opt": ["linear"],
    "modernbert": ["linear", "gelu", "norm", "dropout", "linear"],
    "mpnet": DENSE,
}
"""Written down from the architectures' own code."""


def head_of(loaded: LoadedModel) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return what gives scores from pooled states, and a few of these."""
    capabilities = find_capabilities(loaded.model, loaded.layer_map)
    view = capabilities.padded_model(loaded.model, loaded.layer_map)

    def run(pooled: Tensor) -> Tensor:
        with view.scores(None, pooled, loaded.layer_map.num_layers) as scores:
            return scores

    return run, torch.randn(5, loaded.model.config.hidden_size)


def frozen_modules(loaded: LoadedModel) -> set[str]:
    return {name for part in loaded.layer_map.modules[:-1] for name in part}


def find(loaded: LoadedModel) -> tuple[HeadChain | None, Callable[[Tensor], Tensor], Tensor]:
    run, pooled = head_of(loaded)
    trainable = frozenset(loaded.layer_map.head)
    chain = find_head_chain(loaded.model, frozen_modules(loaded), trainable, run, pooled)
    return chain, run, pooled


def test_the_steps_of_each_architecture_are_found(load, architecture: str):
    chain, _, _ = find(load(architecture, dropout=0.2))
    assert chain is not None
    assert [step.kind for step in chain.steps] == STEPS[architecture]


def test_many_heads_at_once_give_the_scores_of_each(load, architecture: str):
    loaded = [load(architecture, seed=seed) for seed in (1, 2, 3)]
    chain, _, pooled = find(loaded[0])
    rows = [pooled + index for index in range(3)]
    wanted, values = [], []
    for model, own in zip(loaded, rows, strict=True):
        run, _ = head_of(model)
        with torch.no_grad():
            wanted.append(run(own))
        values.append(chain.features(model.model, run, own))
    weights = {
        name: torch.stack([model.model.get_parameter(name) for model in loaded])
        for name in chain.parameters
    }
    with torch.no_grad():
        scores = chain.scores(torch.stack(values), weights)
    torch.testing.assert_close(scores, torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_each_head_alone(load):
    loaded = load("modernbert", seed=1)
    chain, run, pooled = find(loaded)
    model = loaded.model
    functional.cross_entropy(run(pooled), torch.tensor([0, 1, 2, 0, 1])).backward()
    held = {name: model.get_parameter(name).detach() for name in chain.parameters}
    weights = {name: torch.stack([p, p]).requires_grad_() for name, p in held.items()}
    values = chain.features(model, run, pooled)
    scores = chain.scores(torch.stack([values, 2 * values]), weights)
    functional.cross_entropy(scores[0], torch.tensor([0, 1, 2, 0, 1])).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad[0], model.get_parameter(name).grad)
        assert not weight.grad[1].any()


def test_a_norm_in_bf16_rounds_as_torchs_own_does(load):
    loaded = load("modernbert")
    chain, run, pooled = find(loaded)
    values = chain.features(loaded.model, run, pooled)
    with torch.no_grad():
        wanted = run_in_bf16(loaded, pooled)
        weights = {n: loaded.model.get_parameter(n)[None] for n in chain.parameters}
        scores = chain.scores(values[None].bfloat16(), weights)[0]
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores, wanted, rtol=0.05, atol=0.05)


def run_in_bf16(loaded: LoadedModel, pooled: Tensor) -> Tensor:
    loaded.model.to(torch.bfloat16)
    run, _ = head_of(loaded)
    return run(pooled.bfloat16())


def test_dropout_is_asked_for_by_the_name_of_its_module(load):
    loaded = load("roberta", dropout=0.2)
    chain, _, pooled = find(loaded)
    weights = {name: loaded.model.get_parameter(name)[None] for name in chain.parameters}
    asked = []

    def drop(name: str, values: Tensor) -> Tensor:
        asked.append(name)
        return values

    chain.scores(pooled[None], weights, drop)
    assert asked == ["classifier.dropout", "classifier.dropout"]
    assert chain.dropouts == {"classifier.dropout"}


class Tail(nn.Module):
    """A head on its own, to be wrong in one way at a time."""

    def __init__(self, between=lambda values: values, first: nn.Module | None = None):
        super().__init__()
        self.first = first or nn.Linear(8, 8)
        self.second = nn.Linear(8, 3)
        self.between = between

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.between(self.first(values)))


def find_tail(tail: Tail, trainable: frozenset[str] | None = None) -> HeadChain | None:
    names = frozenset(name for name, _ in tail.named_parameters())
    return find_head_chain(tail, (), trainable or names, tail, torch.randn(4, 8))


def test_a_plain_chain_is_found():
    assert [step.kind for step in find_tail(Tail()).steps] == ["linear", "linear"]
    assert [step.kind for step in find_tail(Tail(functional.silu)).steps][1] == "silu"


def dropped_in_training(tail: Tail) -> Tail:
    tail.between = lambda values: functional.dropout(values, 0.5, tail.training)
    return tail


@pytest.mark.parametrize("kind", ["tanh", "gelu", "relu", "silu"])
def test_small_weights_do_not_hide_what_happens_between_layers(kind: str):
    tail = Tail(getattr(functional, kind))
    for parameter in tail.parameters():
        parameter.data *= 1e-4
    assert [step.kind for step in find_tail(tail).steps] == ["linear", kind, "linear"]


class Squared(nn.Module):
    """A layer with parameters that is none of the known ones."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(8, 8, 8)

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values, values)


@pytest.mark.parametrize(
    "tail",
    [Tail(torch.sin), Tail(first=Squared()), dropped_in_training(Tail())],
    ids=["another activation", "another layer", "dropout inside"],
)
def test_a_head_that_is_not_understood_is_left_alone(tail: Tail):
    assert find_tail(tail) is None


def test_a_parameter_that_is_no_part_of_the_chain_is_left_alone():
    tail = Tail()
    names = frozenset({"first.weight", "second.weight"})
    assert find_tail(tail, names) is None
