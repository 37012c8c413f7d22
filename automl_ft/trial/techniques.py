"""Which ways to be fast does a trial use? All of them, unless a measurement asks otherwise."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALL", "NONE", "Techniques"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Techniques:
    """Switches; what a model or a device does not allow stays off whatever they say."""

    packed: bool = True
    """Real tokens end to end, rather than padded batches."""
    bucketed: bool = True
    """Batches of rows of similar length, where they are padded."""
    bf16: bool = True
    """Forward and backward in bfloat16 with fp32 master weights, where the study says bf16."""
    screening: bool = True
    """Validation in bf16 where training is, but for rows whose class that leaves in doubt."""
    prefix_cache: bool = True
    """Activations of frozen blocks from the study's cache."""
    last_block: bool = True
    """The top block only where the head reads."""
    compact_vocabulary: bool = True
    """Embedding rows and their optimiser state only for tokens in use."""
    cheap_dropout: bool = True
    """Dropout masks from a fast generator, on a CPU."""
    row_attention: bool = True
    """Attention over packed rows as one function with a gradient of its own, on a CPU."""
    fused_optimizer: bool = True
    """AdamW by one kernel for all that it does to a weight, where the device has one."""
    large_validation: bool = True
    """Validation in large batches of rows of similar length, rather than in the training batch's
    size and the order of the rows."""
    cuda_graphs: bool = True
    """Steps that are recorded and launched whole, on a GPU where the study says so."""


ALL = Techniques()
"""What trials use."""
NONE = Techniques(
    packed=False,
    bucketed=False,
    bf16=False,
    screening=False,
    prefix_cache=False,
    last_block=False,
    compact_vocabulary=False,
    cheap_dropout=False,
    row_attention=False,
    fused_optimizer=False,
    large_validation=False,
    cuda_graphs=False,
)
"""The plain reference: padded, fp32, no cache, no shortcut."""
