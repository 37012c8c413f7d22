"""Which keys does a study file have? Write them out of the dataclasses that are their contract.

    python docs/study_file_keys.py          # rewrites docs/study-files.md

A test compares the page with what this returns.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from automl_ft.config import study

PAGE = Path(__file__).with_name("study-files.md")
SECTIONS = (
    ("StudyConfig", "", "The study"),
    ("ModelConfig", "model.", "`model`: the pretrained model"),
    ("DataConfig", "data.", "`data`: the labelled rows"),
    ("BudgetConfig", "budget.", "`budget`: when the search ends"),
    ("TrainingConfig", "training.", "`training`: the same in every trial"),
)
SPELLINGS = {"budget.timeout_seconds": "budget.timeout"}
"""Keys that a study file spells in another way than the dataclass."""
INTRODUCTION = """# Study files

Written by `python docs/study_file_keys.py` from `automl_ft/config/study.py`. Every key can also be
given on the command line, as `--set KEY=VALUE`. A key without a default must be given.
`automl-ft search` shows each setting that counts, where it comes from, and what `auto` came to.
"""


def page() -> str:
    """Return the page.

    Returns:
        Markdown: a table for each dataclass of `automl_ft/config/study.py`.
    """
    tree = ast.parse(inspect.getsource(study))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = [INTRODUCTION]
    for name, prefix, title in SECTIONS:
        rows = [f"## {title}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        rows += [
            f"| `{key}` | {default} | {text} |"
            for key, default, text in fields(classes[name], prefix)
        ]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def fields(node: ast.ClassDef, prefix: str) -> list[tuple[str, str, str]]:
    """Return key, default and meaning of each field that holds a value of its own.

    Args:
        node: A dataclass.
        prefix: What comes before its keys.

    Returns:
        Text for the cells of a table.
    """
    found = []
    for statement, after in zip(node.body, node.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(after, ast.Expr):
            continue
        assert isinstance(statement.target, ast.Name)
        assert isinstance(after.value, ast.Constant)
        key = prefix + statement.target.id
        if ast.unparse(statement.annotation).endswith("Config"):
            continue  # a section of its own
        text = " ".join(str(after.value.value).split()).replace("|", "\\|")
        found.append((SPELLINGS.get(key, key), _default(statement.value), text))
    return found


def _default(value: ast.expr | None) -> str:
    if value is None:
        return ""
    plain = ast.literal_eval(value)
    if plain is None:
        return "none"
    return f"`{', '.join(plain)}`" if isinstance(plain, tuple) else f"`{plain}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
