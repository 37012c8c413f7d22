"""Which shortcuts does a model allow? Found by trying them on a few rows, not from a list.

Whatever does not give the scores of the plain model is not used, and a sentence says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from automl_ft.models.dropout import DropoutStream
from automl_ft.models.head_chain import find_head_chain
from automl_ft.models.last_block import ReadBlock, read_block
from automl_ft.models.layer_map import LayerMap
from automl_ft.models.lookups import CheckedLookups
from automl_ft.models.packed import use_packed_attention
from automl_ft.models.packed_model import PackedInputs, PackedModel, PackedTraits
from automl_ft.models.packing import pack
from automl_ft.models.padded_model import PaddedInputs, PaddedModel, PaddedTraits
from automl_ft.models.tried_rows import long_rows, short_rows

__all__ = ["Capabilities", "find_capabilities"]

_TOLERANCE = 1e-3
"""How far scores may lie apart, relative to the largest: fp32 sums in another order differ by less
than 1e-5; a wrong position or mask by far more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What was found for one model."""

    padded: PaddedTraits
    """How it runs on padded rows."""
    packed: PackedTraits | None
    """How it runs on packed rows; None if it does not."""
    has_read_block: bool
    """Whether its top block can be computed only where the head reads."""
    deepest_prefix: int
    """How many of its lowest blocks can be stood in for by stored activations; -1 for none."""
    can_stack: bool
    """Whether the heads of several trials can be trained together on stored states."""
    notes: tuple[str, ...]
    """One sentence for each shortcut that it does not allow."""

    def packed_model(
        self,
        model: PreTrainedModel,
        layer_map: LayerMap,
        *,
        stream: DropoutStream | None = None,
        use_read_block: bool = True,
        by_rows: bool = True,
    ) -> PackedModel:
        """Return a view of a model that runs on packed rows.

        Args:
            model: A model like the one that was looked at; it gets packed attention.
            layer_map: Its parts.
            stream: Where attention masks come from; None for torch's own generator.
            use_read_block: Whether the top block is computed only where the head reads, if it can.
            by_rows: Whether attention goes by `models.row_attention` where it can.

        Returns:
            The view.

        Raises:
            ValueError: The model does not run on packed rows.
        """
        if self.packed is None:
            raise ValueError(f"`{type(model).__name__}` does not run on packed rows.")
        use_packed_attention(model)
        block = _read_block(model, layer_map) if use_read_block and self.has_read_block else None
        return PackedModel(
            model=model,
            layer_map=layer_map,
            traits=self.packed,
            read_block=block,
            stream=stream,
            by_rows=by_rows,
        )

    def padded_model(self, model: PreTrainedModel, layer_map: LayerMap) -> PaddedModel:
        """Return a view of a model that runs on padded rows.

        Args:
            model: A model like the one that was looked at; off the CPU it gets packed attention if
                it takes it, which makes masks without waiting for the device.
            layer_map: Its parts.

        Returns:
            The view.
        """
        if self.packed is not None and model.device.type != "cpu":
            use_packed_attention(model)
        return PaddedModel(model=model, layer_map=layer_map, traits=self.padded)


def find_capabilities(
    model: PreTrainedModel,
    layer_map: LayerMap,
    *,
    longest: int | None = None,
    is_fatal: Callable[[Exception], bool] = lambda error: False,
) -> Capabilities:
    """Try the shortcuts on a model.

    A window of attention shows only in rows that are longer than it. Where the model has one that
    the study's rows can exceed, a shortcut must agree on such a row too; this costs at most five
    forward passes of a row as long as the study's longest.

    Args:
        model: In fp32; left in eval mode, with packed attention if it allows that.
        layer_map: Its parts.
        longest: Tokens of the longest row that it will be run on; None for up to 512.
        is_fatal: Tells errors that say nothing of the model, such as a lack of memory.

    Returns:
        What it allows.

    Raises:
        Exception: One that is fatal.
    """
    model.eval()  # type: ignore[no-untyped-call]
    # A GPU does not survive an index beyond a table.
    with CheckedLookups():  # type: ignore[no-untyped-call]
        return _found(model, layer_map, long_rows(model, longest), is_fatal)


def _found(
    model: PreTrainedModel,
    layer_map: LayerMap,
    long_rows: Sequence[Tensor],
    is_fatal: Callable[[Exception], bool],
) -> Capabilities:
    try:
        trial = _Trial(model, layer_map, long_rows, is_fatal)
    except Exception as error:  # as in `_agrees`
        if is_fatal(error):
            raise
        return _without_shortcuts(type(model).__name__)
    packed = trial.find_packed()
    has_read_block = packed is not None and trial.read_block_agrees(packed)
    deepest = trial.deepest_prefix(packed)
    heads = trial.head_notes(packed, deepest)
    return Capabilities(
        padded=trial.padded,
        packed=packed,
        has_read_block=has_read_block,
        deepest_prefix=deepest,
        can_stack=deepest == layer_map.num_layers and not heads,
        notes=(
            *_packing_notes(type(model).__name__, trial.padded, packed, has_read_block),
            *_prefix_notes(type(model).__name__, deepest, layer_map.num_layers),
            *heads,
        ),
    )


def _without_shortcuts(name: str) -> Capabilities:
    return Capabilities(
        padded=PaddedTraits(reads="all", is_length_first=False, output_length=None),
        packed=None,
        has_read_block=False,
        deepest_prefix=-1,
        can_stack=False,
        notes=(f"`{name}` allows none of the engine's shortcuts: it runs plainly.",),
    )


def _packing_notes(
    name: str, padded: PaddedTraits, packed: PackedTraits | None, has_read_block: bool
) -> tuple[str, ...]:
    notes = []
    if packed is None:
        notes.append(f"`{name}` does not run on packed rows: batches hold rows of similar length.")
    # A head that reads every position needs the last block in full; nothing is lost there.
    if not has_read_block and padded.reads != "all":
        notes.append(f"The last block of `{name}` is computed for all tokens.")
    return tuple(notes)


def _prefix_notes(name: str, deepest: int, num_layers: int) -> tuple[str, ...]:
    if deepest < 0:
        return (f"Activations of frozen blocks of `{name}` are not kept.",)
    if deepest < num_layers:
        return (f"Activations of `{name}` are kept up to block {deepest} of {num_layers}.",)
    return ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sample:
    """Some rows and what the plain model makes of them."""

    rows: Sequence[Tensor]
    """Token ids of each row."""
    scores: Tensor | None
    """The plain model's scores; None where it failed."""


class _Trial:
    """Runs one model plainly, then with shortcuts, on the same rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        layer_map: LayerMap,
        long_rows: Sequence[Tensor],
        is_fatal: Callable[[Exception], bool],
    ) -> None:
        self._model = model
        self._is_fatal = is_fatal
        self._layer_map = layer_map
        self._rows: Sequence[Tensor] = short_rows(model)
        self.padded: PaddedTraits
        self._num_runs = 0
        self._samples = [_Sample(rows=self._rows, scores=self._look())]
        if long_rows:
            self._samples.append(_Sample(rows=long_rows, scores=self._plain(long_rows)))

    def _plain(self, rows: Sequence[Tensor]) -> Tensor | None:
        """Return the plain model's scores; None where it fails."""
        try:
            with torch.no_grad():
                logits: Tensor = self._model(**self._padded_inputs(rows).arguments).logits
                return logits
        except Exception as error:
            if self._is_fatal(error):
                raise
            return None

    @torch.enable_grad()
    def _look(self) -> Tensor:
        """Run the plain model; see which positions of the last block's output matter."""
        outputs: list[Tensor] = []
        kinds: list[int | None] = []

        def keep(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            if not states.requires_grad:
                states.requires_grad_(True)
            outputs.append(states)
            kinds.append(None if isinstance(output, Tensor) else len(output))

        last = self._model.get_submodule(self._layer_map.block_modules[-1])
        handle = last.register_forward_hook(keep)
        inputs = self._padded_inputs(self._rows)
        try:
            logits: Tensor = self._model(**inputs.arguments).logits
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(logits.square().sum(), outputs[-1])
        is_length_first = gradient.shape[0] != len(self._rows)
        weights = (gradient.transpose(0, 1) if is_length_first else gradient).abs().sum(2)
        self._num_runs = len(outputs)
        self.padded = PaddedTraits(
            reads=_positions(weights.cpu(), inputs.valid.cpu()),
            is_length_first=is_length_first,
            output_length=kinds[-1],
        )
        return logits.detach()

    def find_packed(self) -> PackedTraits | None:
        """Return the first way of running packed that gives the plain model's scores."""
        if not getattr(self._model, "_supports_attention_backend", False):
            return None
        before = self._model.config._attn_implementation
        use_packed_attention(self._model)
        for traits in self._candidates():
            if self._agrees(partial(self._packed, traits)):
                return traits
        self._model.set_attn_implementation(before)
        return None

    def _candidates(self) -> Iterator[PackedTraits]:
        padding = getattr(self._model.config.get_text_config(), "pad_token_id", None)
        for at_block in (True, False) if self.padded.reads != "all" else (False,):
            for offset in (0,) if padding is None else (0, padding + 1):
                yield PackedTraits(
                    reads=self.padded.reads,
                    gathers_at_block=at_block,
                    position_offset=offset,
                    last_block_runs=self._num_runs,
                )

    def read_block_agrees(self, traits: PackedTraits) -> bool:
        """Tell whether the top block can be computed only where the head reads."""
        block = _read_block(self._model, self._layer_map)
        if block is None or not traits.gathers_at_block:
            return False
        return self._agrees(partial(self._packed, traits, block))

    def deepest_prefix(self, packed: PackedTraits | None) -> int:
        """Return how many blocks can be stood in for: all of them, all but the top one, none."""
        num_layers = self._layer_map.num_layers
        may_pool = self.padded.reads != "all"
        for num_blocks in (num_layers, num_layers - 1) if may_pool else (num_layers - 1,):
            if self._agrees(partial(self._from_prefix, packed, num_blocks)):
                return num_blocks
        return -1

    def head_notes(self, packed: PackedTraits | None, deepest: int) -> tuple[str, ...]:
        """Say whether heads cannot be trained together although their features can be kept."""
        layer_map, chain = self._layer_map, None
        if deepest < layer_map.num_layers:
            return ()
        view, inputs = self._view(packed, self._rows)

        def run(pooled: Tensor) -> Tensor:
            with view.scores(inputs, pooled, deepest) as scores:  # type: ignore[arg-type]
                return scores

        try:
            chain = find_head_chain(
                self._model,
                {name for part in layer_map.modules[:-1] for name in part},
                frozenset(layer_map.head) - layer_map.constants,
                run,
                view.prefix(inputs, deepest),  # type: ignore[arg-type]
            )
        except Exception as error:  # as in `_agrees`
            if self._is_fatal(error):
                raise
        name = type(self._model).__name__
        return () if chain else (f"Heads of `{name}` are trained one by one.",)

    def _view(
        self, packed: PackedTraits | None, rows: Sequence[Tensor]
    ) -> tuple[PackedModel | PaddedModel, PackedInputs | PaddedInputs]:
        if packed is not None:
            return self._packed_view(packed), self._packed_inputs(rows)
        view = PaddedModel(model=self._model, layer_map=self._layer_map, traits=self.padded)
        return view, self._padded_inputs(rows)

    def _from_prefix(self, packed: PackedTraits | None, num_blocks: int) -> Tensor:
        """Score the rows from activations that were computed for each row by itself.

        So they are stored: in other batches than those in which they are used. Where a row's states
        depend on the rows or the padding beside it (FNet, Nystromformer), this does not agree.
        """
        view, inputs = self._view(packed, self._rows)
        hidden = torch.cat([self._row_prefix(packed, row, num_blocks) for row in self._rows])
        if packed is not None and num_blocks < self._layer_map.num_layers:
            num_filler = len(self._packed_inputs(self._rows).input_ids) - len(hidden)
            hidden = torch.cat([hidden, hidden[:1].expand(num_filler, -1)])
        with view.scores(inputs, hidden, num_blocks) as scores:  # type: ignore[arg-type]
            return scores

    def _row_prefix(self, packed: PackedTraits | None, row: Tensor, num_blocks: int) -> Tensor:
        view, inputs = self._view(packed, [row])
        hidden = view.prefix(inputs, num_blocks)  # type: ignore[arg-type]
        return hidden[: len(row) if num_blocks < self._layer_map.num_layers else 1]

    def _packed(self, traits: PackedTraits, block: ReadBlock | None = None) -> Tensor:
        with self._packed_view(traits, block).scores(self._packed_inputs(self._rows)) as scores:
            return scores

    def _packed_view(self, traits: PackedTraits, block: ReadBlock | None = None) -> PackedModel:
        return PackedModel(
            model=self._model,
            layer_map=self._layer_map,
            traits=traits,
            read_block=block,
            stream=None,
        )

    def _packed_inputs(self, rows: Sequence[Tensor]) -> PackedInputs:
        device = self._model.device
        packing = pack(np.asarray([len(row) for row in rows]), device)
        filler = torch.zeros(packing.num_tokens - sum(map(len, rows)), dtype=torch.int64)
        ids = torch.cat([*rows, filler]).to(device)
        return PackedInputs(input_ids=ids, token_type_ids=None, packing=packing)

    def _padded_inputs(self, rows: Sequence[Tensor]) -> PaddedInputs:
        padding = getattr(self._model.config.get_text_config(), "pad_token_id", None) or 0
        pad = torch.nn.utils.rnn.pad_sequence
        device = self._model.device
        # Models that read the last position whatever it holds are padded on the left.
        is_last = getattr(self._model.config, "summary_type", None) == "last"
        side = "left" if is_last else "right"
        ones = [torch.ones_like(row) for row in rows]
        ids = pad(list(rows), batch_first=True, padding_value=padding, padding_side=side)
        mask = pad(ones, batch_first=True, padding_side=side)
        return PaddedInputs(
            arguments={"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        )

    def _agrees(self, run: Callable[[], Tensor]) -> bool:
        """Tell whether a shortcut gives the plain model's scores; an error means that it does not.

        Which errors an architecture raises where it is called in a way that it was not written
        for cannot be known, and none of them is the user's.
        """
        before = self._rows
        try:
            for sample in self._samples:
                self._rows = sample.rows
                with torch.no_grad():
                    scores = run()
                if not _is_close(scores, sample.scores):
                    return False
        except Exception as error:
            if self._is_fatal(error):
                raise
            return False
        finally:
            self._rows = before
        return True


def _is_close(scores: Tensor, wanted: Tensor | None) -> bool:
    if wanted is None or scores.shape != wanted.shape or not torch.isfinite(scores).all():
        return False
    limit = _TOLERANCE * float(wanted.abs().max().clamp(min=1e-6))
    return float((scores - wanted).abs().max()) <= limit


def _positions(weights: Tensor, valid: Tensor) -> str:
    """Return which position of each row matters, from weights (B, S)."""
    places = [torch.nonzero(row).flatten().tolist() for row in valid]
    read = [torch.nonzero(row).flatten().tolist() for row in weights]
    if all(r == [p[0]] for r, p in zip(read, places, strict=True)):
        return "first"
    if all(r == [p[-1]] for r, p in zip(read, places, strict=True)):
        return "last"
    return "all"


def _read_block(model: PreTrainedModel, layer_map: LayerMap) -> ReadBlock | None:
    return read_block(model.get_submodule(layer_map.block_modules[-1]))
