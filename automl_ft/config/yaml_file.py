"""How is a YAML file read strictly, with every problem and its line?

Study files and search spaces share this reader. It follows YAML 1.2's core schema: `1e-5` is a
number, and `yes`, `no`, `on`, `1:30`, `010` and dates mean what they look like to a newcomer, not
what YAML 1.1 made of them. What the keys mean is left to the callers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from automl_ft.errors import Problem

__all__ = ["parse_yaml", "read_yaml"]


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the implicit types of YAML 1.2."""

    # A table of its own: adding to the inherited one would change PyYAML for everybody.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
    ("merge", r"<<", ["<"]),
)
for _name, _pattern, _first in _CORE_SCHEMA:
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node), 10)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: The file, in UTF-8.

    Returns:
        The mapping and every problem found. With a syntax error, or where the file cannot be
        read at all, the mapping is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return {}, [Problem(place=str(path), message="There is no such file. Check the path.")]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        message = f"Line {line} is not UTF-8 text. Save the file in UTF-8."
        return {}, [Problem(place=str(path), message=message)]
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"The file cannot be read ({reason}). Give a readable YAML file."
        return {}, [Problem(place=str(path), message=message)]
    content, problems = parse_yaml(text, str(path))
    if problems and content is None:
        return {}, problems
    if not isinstance(content, dict):
        holds = "is empty" if content is None else f"holds a {type(content).__name__}"
        message = f"The file {holds}; accepted are `key: value` lines."
        return {}, [*problems, Problem(place=str(path), message=message)]
    return content, problems


def parse_yaml(text: str, place: str) -> tuple[Any, list[Problem]]:
    """Parse YAML text, for instance one value of an option.

    Args:
        text: One YAML document.
        place: Where the text came from; used in the problems.

    Returns:
        The value and every problem found: syntax errors with line and column, keys that are given
        twice, keys that are not text. With a syntax error the value is None.
    """
    try:
        loader = _StrictLoader(text)
    except yaml.reader.ReaderError as error:
        return None, [_unreadable_character(error, text, place)]
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        problems = list(_key_problems(node, place, "", (), set()))
        if any(problem.message.startswith("It contains itself") for problem in problems):
            return None, problems
        return loader.construct_document(node), problems
    except yaml.MarkedYAMLError as error:
        return None, [_syntax_problem(error, place)]
    # PyYAML raises KeyError and AttributeError for tags whose values do not fit: `!!bool 3`.
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        message = f"The YAML cannot be read ({error}). Write it more simply."
        return None, [Problem(place=place, message=message)]
    finally:
        loader.dispose()


def _unreadable_character(error: yaml.reader.ReaderError, text: str, place: str) -> Problem:
    line = text[: error.position].count("\n") + 1
    column = error.position - text.rfind("\n", 0, error.position)
    message = f"The character #x{error.character:04x} is not allowed in YAML. Remove it."
    return Problem(place=f"{place}: line {line}, column {column}", message=message)


def _syntax_problem(error: yaml.MarkedYAMLError, place: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"{place}: line {mark.line + 1}, column {mark.column + 1}" if mark else place
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return Problem(place=where, message=f"The YAML cannot be read: {what}. {_advice(error)}")


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "constructor for the tag" in problem:
        return "Remove the tag; plain values need none."
    if "unhashable key" in problem:
        return "A key must be plain text, neither a list nor a mapping."
    if isinstance(error, yaml.constructor.ConstructorError):
        return "Write plain keys and values, without tags."
    return "Check indentation, quotes, colons and brackets."


def _key_problems(
    node: yaml.Node, place: str, key: str, above: tuple[yaml.Node, ...], seen: set[int]
) -> Iterator[Problem]:
    """Yield duplicate keys, keys that are no text, and aliases that contain themselves.

    What aliases repeat is read once: aliases of aliases would take for ever.
    """
    if node in above:
        yield Problem(
            place=f"{place}: {key}", message="It contains itself through an alias. Write it out."
        )
        return
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_problems(item, place, f"{key}[{index}]", (*above, node), seen)
    if isinstance(node, yaml.MappingNode):
        yield from _mapping_problems(node, place, key, above, seen)


def _mapping_problems(
    node: yaml.MappingNode, place: str, key: str, above: tuple[yaml.Node, ...], seen: set[int]
) -> Iterator[Problem]:
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value)
        dotted = f"{key}.{name}" if key else name
        if key_node.tag == "tag:yaml.org,2002:merge":
            yield from _key_problems(value_node, place, key, (*above, node), seen)
            continue
        if key_node.tag != "tag:yaml.org,2002:str":
            shown = name if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            message = f"The key `{shown}` in line {line} is not text. Put quotes around it."
            yield Problem(place=f"{place}: {key}" if key else place, message=message)
            continue
        if name in lines:
            message = f"The key is given twice, in line {lines[name]} and line {line}. Keep one."
            yield Problem(place=f"{place}: {dotted}", message=message)
        lines.setdefault(name, line)
        yield from _key_problems(value_node, place, dotted, (*above, node), seen)
