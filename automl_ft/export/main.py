"""The process that writes the parts of an export that need torch: model, script, card.

Reads an `ExportJob` as JSON on standard input and answers with one line of JSON on standard
output: what was written, or the error, by which `service` raises it again.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from automl_ft.errors import AutomlFtError
from automl_ft.export.job import ExportJob
from automl_ft.specs.codec import from_plain

__all__ = ["main"]


def main() -> int:
    """Write an export.

    Returns:
        The exit code: 0, or that of the error.
    """
    job = from_plain(ExportJob, json.load(sys.stdin))
    try:
        # Whatever a library prints must not mix with the answer.
        with contextlib.redirect_stdout(sys.stderr):
            answer: dict[str, Any] = {"value": _write(job)}
        code = 0
    except AutomlFtError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
        code = error.exit_code
    print(json.dumps(answer), flush=True)
    return code


def _write(job: ExportJob) -> float:
    """Write model, script and card; return the objective of the written model."""
    from automl_ft.export.card import write_card
    from automl_ft.export.model import rebuild_model, save_model, verify_model
    from automl_ft.export.script import write_script

    target = Path(job.target)
    rebuilt = rebuild_model(job)
    save_model(job, rebuilt, target / "model")
    value = verify_model(job, target / "model")
    write_script(job, rebuilt, target / "train.py")
    write_card(job, value, target / "README.md")
    return value


if __name__ == "__main__":
    sys.exit(main())
