"""The parts of `train.py` that read the same for every recipe that has them. A leaf.

What stands in capitals is a constant at the top of the script; `script.py` chooses the blocks.
"""

from __future__ import annotations

__all__ = [
    "AUGMENTED_ROWS",
    "CLASSIFICATION_LOSS",
    "FRESH_BLOCKS",
    "FREEZE",
    "FROZEN_TRAINER",
    "GRADUAL_TRAINER",
    "GROUPED_OPTIMIZER",
    "L1_CALLBACK",
    "MIXED_LOSS",
    "READ_ROWS",
    "TOKENIZED_ROWS",
    "TOKEN_DROPOUT",
    "WORD_CHANGES",
]

READ_ROWS = '''
def read_rows(path: str) -> tuple[list[tuple[str, ...]], list[int]]:
    """Read texts and class ids: the study's copy of its rows, or another file."""
    readers = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}
    rows = readers.get(Path(path).suffix, Dataset.from_json)(path)
    if "text_0" in rows.column_names:  # the study's own copy holds class ids
        columns, labels = [f"text_{i}" for i in range(len(TEXT))], list(rows["label"])
    else:
        columns, labels = TEXT, [LABELS.index(str(label)) for label in rows[LABEL]]
    return list(zip(*(rows[column] for column in columns), strict=True)), labels
'''

TOKENIZED_ROWS = '''
def encode(texts: list[tuple[str, ...]], labels: list[int], tokenizer) -> Dataset:
    """Tokenize all rows at once."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    return Dataset.from_dict({**tokenizer(*columns, truncation=True), "labels": labels})
'''

WORD_CHANGES = '''
def change_words(text: str) -> str:
    """Leave words out and let neighbours change places, at random."""
    words = text.split()
    words = [word for word in words if random.random() >= WORD_DELETION] or words[:1]
    index = 0
    while index + 1 < len(words):
        if random.random() < WORD_SWAP:
            words[index], words[index + 1] = words[index + 1], words[index]
            index += 1
        index += 1
    return " ".join(words)
'''

AUGMENTED_ROWS = '''
class AugmentedRows(torch.utils.data.Dataset):
    """Training rows that are changed anew whenever they are read."""

    def __init__(self, texts: list[tuple], labels: list[int], tokenizer) -> None:
        self.texts, self.labels, self.tokenizer = texts, labels, tokenizer

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        row = self.tokenizer(*{texts}, truncation=True)
{dropout}        return {{**row, "labels": self.labels[index]}}
'''

TOKEN_DROPOUT = """\
        is_special = self.tokenizer.get_special_tokens_mask(
            row["input_ids"], already_has_special_tokens=True
        )
        row["input_ids"] = [
            token if special or random.random() >= TOKEN_DROPOUT else REPLACEMENT_TOKEN
            for token, special in zip(row["input_ids"], is_special, strict=True)
        ]
"""

FREEZE = '''
def freeze(model) -> None:
    """Keep the parameters of the frozen modules as they are."""
    for name, parameter in model.named_parameters():
        if name.startswith(FROZEN):
            parameter.requires_grad_(False)
'''

FROZEN_TRAINER = '''
class PartlyFrozenTrainer(Trainer):
    """Runs frozen modules in eval mode: no dropout where nothing is learned."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            for name, module in self.model.named_modules():
                if f"{name}.".startswith(FROZEN):
                    module.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)
'''

GRADUAL_TRAINER = '''
class GraduallyUnfrozenTrainer(Trainer):
    """Unfreezes one part after the other, from the top down."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # What the architecture itself never trains stays as it is.
        self.learned = {n for n, p in self.model.named_parameters() if p.requires_grad}

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            self.unfreeze(self.state.global_step / self.state.max_steps)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def unfreeze(self, progress: float) -> None:
        """Freeze what is not yet to be trained, gradient and dropout."""
        num_unfrozen = int(progress / UNFREEZING_PACE * NUM_PARTS + 1e-9)
        parts = FROZEN_PARTS[: max(NUM_PARTS - num_unfrozen, 0)]
        frozen = tuple(prefix for part in parts for prefix in part)
        for name, parameter in self.model.named_parameters():
            if name in self.learned:
                parameter.requires_grad_(not name.startswith(frozen))
        for name, module in self.model.named_modules():
            if f"{name}.".startswith(frozen):
                module.eval()
'''

FRESH_BLOCKS = '''
def reinitialise(model) -> None:
    """Start the top blocks from fresh weights (Zhang et al. 2021, arXiv 2006.05987)."""
    for name in REINITIALISED:
        module = model.get_submodule(name)
        for parameter in module.parameters():
            parameter._is_hf_initialized = False
        module.apply(model._init_weights)
'''

GROUPED_OPTIMIZER = '''
def build_optimizer(model) -> torch.optim.AdamW:
    """Build AdamW with a group for each rate; no decay on norms and biases."""
    groups: dict[tuple[float, bool], list] = {{}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and not name.endswith("bias")
{rate}
            groups.setdefault((rate, is_decayed), []).append(parameter)
    options = [
        {{
            "params": parameters,
            "lr": rate,
            "weight_decay": WEIGHT_DECAY if is_decayed else 0.0,
            "is_decayed": is_decayed,
        }}
        for (rate, is_decayed), parameters in groups.items()
    ]
    return torch.optim.AdamW(options)
'''

L1_CALLBACK = '''
class ShrinkWeights(TrainerCallback):
    """Decoupled L1: a soft threshold of rate times strength after every step."""

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if group["is_decayed"] and parameter.grad is not None:
                    parameter.copy_(softshrink(parameter, float(group["lr"]) * L1))
'''

CLASSIFICATION_LOSS = '''
def compute_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """Average the cross-entropy over the effective batch."""
{weight}    total = cross_entropy(
        outputs["logits"].float(),
        labels,
{options}        reduction="sum",
    )
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
'''

MIXED_LOSS = '''
def total_loss(logits, labels) -> torch.Tensor:
    """Sum the cross-entropy over some rows."""
{weight}    return cross_entropy(
        logits,
        labels,
{options}        reduction="sum",
    )


def compute_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """Average the loss over the effective batch; in training of rows mixed in pairs."""
    logits = outputs["logits"].float()
    if torch.is_grad_enabled():
        share = random.betavariate(MIXUP, MIXUP)
        order = torch.randperm(len(labels), device=labels.device)
        mixed = share * logits + (1 - share) * logits[order]
        total = share * total_loss(mixed, labels)
        total = total + (1 - share) * total_loss(mixed, labels[order])
    else:
        total = total_loss(logits, labels)
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
'''
