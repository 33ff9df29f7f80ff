"""What the configs of a bundle would execute: every `_target_` and every `$` expression.

MONAI calls whatever a `_target_` names and evaluates whatever follows a `$`. Here both are listed and held
against a list of what is allowed: parts of MONAI, PyTorch, Ignite and the bundle's own `scripts`, and in
expressions a few functions of Python beside them. What the files of `scripts` do is not judged.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from monai.bundle import ComponentLocator

#: Packages whose classes and functions a `_target_` may name, and expressions may use.
PACKAGES = ("monai", "torch", "ignite", "scripts")

#: Of these packages what reads code from files, or from the network.
LOADERS = re.compile(
    r"torch\.(load|hub|jit\.load|export\.load|ops\.load_library|classes\.load_library|utils\.cpp_extension)\b"
    r"|torch\.(package|distributed\.rpc)\b|monai\.apps\.utils\b|monai\.bundle\.(load|download|run|init_bundle)\b"
)

#: Functions of Python that expressions may call.
FUNCTIONS = (
    *("abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "map"),
    *("max", "min", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
)

_REFERENCE = re.compile(r"@(?:\w|::)+|%(?:[\w./:#]+)")


@dataclass(frozen=True)
class Executed:
    """Something that a config would execute.

    Attributes:
        place: file and id, "inference.json network_def".
        what: the target or the expression.
        problem: why it is not allowed, or "".
    """

    place: str
    what: str
    problem: str


def executed(configs: Mapping[str, Any]) -> list[Executed]:
    """All targets and expressions of some configs, in their order.

    Args:
        configs: content by name of the file.
    """
    return [found for name, config in configs.items() for found in _walk(config, f"{name} ")]


def _walk(value: Any, place: str) -> Iterator[Executed]:
    if isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str) and not target.startswith("$"):
            yield Executed(place, target, target_problem(target))
        for key, part in value.items():
            if key != "_target_" or str(part).startswith("$"):
                yield from _walk(part, f"{place}{'' if place.endswith(' ') else '::'}{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _walk(part, f"{place}::{index}")
    elif isinstance(value, str) and value.startswith("$"):
        yield Executed(place, value, expression_problem(value[1:]))


def target_problem(target: str) -> str:
    """Why a `_target_` is not allowed, or ""."""
    name = target
    if "." not in target:
        module = ComponentLocator().get_component_module_name(target)
        if not isinstance(module, str):
            return "MONAI knows no such component"
        name = f"{module}.{target}"
    return _name_problem(name)


def expression_problem(text: str) -> str:
    """Why an expression is not allowed, or "".

    Args:
        text: without the `$`; references such as `@network_def` are allowed.
    """
    source = _REFERENCE.sub("reference", text).strip()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return "no Python expression"
    bound = {"reference"} | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] not in PACKAGES:
                    return f"imports {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            return f"imports from {node.module}"
        elif isinstance(node, ast.Name) and node.id not in (*bound, *FUNCTIONS, *PACKAGES):
            return f"uses {node.id}"
        elif isinstance(node, ast.Attribute):
            problem = f"uses {node.attr}" if node.attr.startswith("_") else ""
            name = ast.unparse(node)
            if name.partition(".")[0] in PACKAGES:
                problem = problem or _name_problem(name)
            if problem:
                return problem
    return ""


def _name_problem(name: str) -> str:
    if name.partition(".")[0] not in PACKAGES:
        return f"{name.partition('.')[0]} is not among {', '.join(PACKAGES)}"
    if any(part.startswith("_") for part in name.split(".")):
        return "a private name"
    return "reads code or data from elsewhere" if LOADERS.match(name) else ""
