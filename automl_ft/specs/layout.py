"""What are the files of a study called, and where in its folder do they lie? A leaf.

Training writes them, the search tidies them and an export reads them, each without the others.
A study on disk outlives this version: another name here is another format.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BEST",
    "LAST",
    "LOGITS",
    "OWN",
    "activations_folder",
    "encoded_folder",
    "log_file",
    "memory_file",
    "rows_folder",
    "trial_folder",
]

BEST = "best.safetensors"
"""In a trial's folder: parameters of the best validated model that training may have changed."""
LAST = "last.pt"
"""In a trial's folder: everything to go on from."""
LOGITS = "validation_logits.npy"
"""In a trial's folder: scores of the best validated model on the validation split, float32, shape
(num_rows, num_labels)."""
OWN = ("data", "trials", "logs", "study.json")
"""In a study's folder: all that is written there. The mark comes last, so that a deletion that was
cut short can be repeated."""


def trial_folder(study: Path, number: int) -> Path:
    """Return the folder of a trial's checkpoints.

    Args:
        study: The study's folder.
        number: The trial.

    Returns:
        Its path; need not exist.
    """
    return study / "trials" / str(number)


def rows_folder(study: Path) -> Path:
    """Return the folder of the study's own copy of its rows.

    Args:
        study: The study's folder.

    Returns:
        Its path; need not exist.
    """
    return study / "data" / "splits"


def encoded_folder(study: Path) -> Path:
    """Return the folder of the encoded rows, a folder for each checkpoint in it.

    Args:
        study: The study's folder.

    Returns:
        Its path; need not exist.
    """
    return study / "data" / "encoded"


def activations_folder(study: Path) -> Path:
    """Return the folder of cached activations of frozen layers; it may be deleted at any time.

    Args:
        study: The study's folder.

    Returns:
        Its path; need not exist.
    """
    return study / "data" / "activations"


def memory_file(study: Path) -> Path:
    """Return the file of what the study's trials have learnt of memory; it may be deleted.

    Args:
        study: The study's folder.

    Returns:
        Its path; need not exist.
    """
    return study / "data" / "memory.json"


def log_file(study: Path, worker: int) -> Path:
    """Return the log file of a worker.

    Args:
        study: The study's folder.
        worker: Its index.

    Returns:
        Its path; need not exist.
    """
    return study / "logs" / f"worker-{worker}.log"
