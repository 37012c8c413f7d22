"""What is kept beside an exported model's weights, so that it can be used without its study?"""

from __future__ import annotations

import json
from pathlib import Path

from automl_ft.export.job import ExportJob

__all__ = ["ABOUT", "FORMAT_VERSION", "write_about"]

ABOUT = "automl_ft.json"
"""The file's name; `predict` finds the text columns in it."""
FORMAT_VERSION = 1
"""Version of its keys."""


def write_about(job: ExportJob, folder: Path) -> None:
    """Write what a model was trained on.

    Args:
        job: The export.
        folder: The model's folder.
    """
    about = {
        "format_version": FORMAT_VERSION,
        "automl_ft": job.version,
        "study": job.study,
        "trial": job.number,
        "task": job.config.task,
        "text": list(job.config.data.text),
        "label": job.config.data.label,
        "labels": list(job.facts.data.labels),
        "max_length": job.checkpoint.max_length,
        "objective": job.config.objective,
        "validation_value": job.value,
        "data_fingerprint": job.facts.data.fingerprint,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (folder / ABOUT).write_text(text, encoding="utf-8")
