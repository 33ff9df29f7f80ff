"""What the configs of a bundle would execute: every `_target_` and every `$` expression.

MONAI calls whatever a `_target_` names and evaluates whatever follows a `$`. Here both are listed and held
against a list of what is allowed: parts of MONAI, PyTorch and Ignite, the bundle's own `scripts`, and in
expressions a few functions and methods of Python beside them. This is a list to be read, not a sandbox: what
the files of `scripts` do, and what allowed components do with their arguments, is not judged.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from monai.bundle import ComponentLocator

#: Packages whose classes and functions a `_target_` may name, and expressions may use,
PACKAGES = ("monai", "torch", "ignite", "scripts")

#: and of the first three the parts that may be used. Others import by name, run commands, or read code from
#: files and from the network.
PARTS = {
    "monai": (
        *("data", "engines", "handlers", "inferers", "losses", "metrics", "networks", "optimizers"),
        *("transforms", "visualize"),
    ),
    "torch": ("amp", "backends", "cuda", "distributed", "nn", "optim"),
    "ignite": ("contrib", "distributed", "engine", "handlers", "metrics"),
}

#: What reads code from files although it stands in an allowed part, or at the top of its package.
LOADERS = ("load", "load_state_dict_from_url", "hub", "compile", "import_ir_module")

#: Functions of Python that expressions may call.
FUNCTIONS = (
    *("abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "map"),
    *("max", "min", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
)

#: Attributes that expressions may use of a reference or any other value: a reference may be a module.
ATTRIBUTES = (
    *("append", "cases", "count", "cpu", "endswith", "finish", "get", "index", "item", "items", "join"),
    *("keys", "lower", "mean", "parameters", "replace", "run", "shape", "size", "split", "startswith"),
    *("state_dict", "stem", "strip", "to", "tolist", "type", "upper", "values"),
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
    elif isinstance(value, str) and _is_part_of_python(value):
        yield Executed(place, value, "names a part of Python, which a component may import")


def _is_part_of_python(text: str) -> bool:
    """Whether a plain text is such a name: LoadImage, for one, imports the reader that it is told."""
    dotted = re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text)
    return dotted is not None and text.partition(".")[0] in sys.stdlib_module_names


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
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    hidden = sorted(bound & {*dir(builtins), *PACKAGES, "np", "numpy", "reference"})
    if hidden:
        return f"gives {hidden[0]} another meaning"
    nodes = sorted(ast.walk(tree), key=lambda node: isinstance(node, ast.Attribute))  # names tell more
    problems = (_node_problem(node, bound | {"reference"}) for node in nodes)
    return next((problem for problem in problems if problem), "")


def _node_problem(node: ast.AST, bound: set[str]) -> str:
    """Why a part of an expression is not allowed, or ""."""
    if isinstance(node, ast.Import):
        imported = [a.asname or a.name for a in node.names if a.asname or a.name not in PACKAGES]
        return f"imports {imported[0]}" if imported else ""
    if isinstance(node, ast.ImportFrom):
        return f"imports from {node.module}"
    if isinstance(node, ast.Name):
        return "" if node.id in (*bound, *FUNCTIONS, *PACKAGES) else f"uses {node.id}"
    if isinstance(node, ast.Attribute):
        name = ast.unparse(node)
        if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", name):
            return _name_problem(name)
        return "" if node.attr in ATTRIBUTES else f"uses {node.attr}"
    return ""


def _name_problem(name: str) -> str:
    """Why the name of a class or function is not allowed, or ""."""
    package, *path = name.split(".")
    if package not in PACKAGES:
        return f"{package} is not among {', '.join(PACKAGES)}"
    if any(part.startswith("_") for part in path):
        return "a private name"
    if package == "scripts":  # those of the bundle, which are not imported here
        return ""
    if set(path) & set(LOADERS):
        return "reads code or data from elsewhere"
    found: Any = import_module(package)
    for index, part in enumerate(path):
        try:
            found = getattr(found, part)
        except AttributeError:
            return f"{package} has no such part"
        is_module = isinstance(found, ModuleType)
        home = found.__name__ if is_module else getattr(found, "__module__", None) or package
        if home.partition(".")[0] != package:
            return f"{'.'.join(path[: index + 1])} is {home}, which {package} imports"
        if index == 0 and part not in PARTS[package] and (is_module or package != "torch"):
            return f"{package}.{part} is not among {', '.join(PARTS[package])}"
    return ""
