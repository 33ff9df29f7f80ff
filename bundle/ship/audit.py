"""What the configs of a bundle would execute: each `_target_`, `$` expression, macro, reader and writer.

MONAI calls whatever a `_target_` names, evaluates whatever follows a `$`, takes in any part of any file for a
`%`, and imports the readers and writers that it is told. Here all of them are held against `allowed.json`:
the exact names that the configs of this version use. Everything else is reported, to be read. Nothing is
imported or evaluated here. What the Python files of a bundle do is not judged.
"""

from __future__ import annotations

import ast
import builtins
import configparser
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.utils import optional_import

from scripts.errors import InputError
from scripts.files import read_json
from scripts.process import bundle_root

yaml, _ = optional_import("yaml")

#: What may stand in a config, by kind: "targets", "names" and "attributes" in expressions, the "syntax" of
#: these (classes of Python's `ast`), and "readers". Exactly what our own configs need: a test sees to it.
ALLOWED: dict[str, frozenset[str]] = {
    kind: frozenset(names) for kind, names in read_json(Path(__file__).with_name("allowed.json")).items()
}

#: What is said of any other name.
NOT_OURS = "this version's own configs do not use it: read what it does"

#: Keys of components that stop in a debugger, or unpickle.
REFUSED_KEYS = ("_debug_", "allow_pickle", "pickle_module", "weights_only")

#: Values of the key `_mode_`; "debug" stops in a debugger.
MODES = ("callable", "default")

#: Keys whose text MONAI takes for the name of something to import.
IMPORTING_KEYS = ("reader", "writer")

#: Ids that paths start from.
ROOTS = ("bundle_root", "dataset_dir", "output_dir")

#: What a logging.conf may set, and the values of those keys that Python evaluates.
LOGGING_KEYS = ("keys", "level", "handlers", "qualname", "propagate", "formatter", "format", "datefmt")
LOGGING_VALUES = {"class": ("StreamHandler",), "args": ("(sys.stdout,)", "(sys.stderr,)")}

#: A config that is larger, longer or deeper is refused: bytes, values, levels, characters of an expression.
MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_EXPRESSION = 8 << 20, 200_000, 50, 1000

#: What MONAI puts in place of a reference in an expression.
_REFERENCES = "__local_refs"

Path_ = tuple[str | int, ...]


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


class _Everything(dict):
    """References that are all there."""

    def __contains__(self, key: object) -> bool:
        return True


def read_config(file: Path) -> dict[str, Any]:
    """A config in JSON or YAML as MONAI reads it.

    Raises:
        InputError: it cannot be read, is no object, holds other values than JSON has, or is too large.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        if file.suffix.lower() != ".json" and any(
            isinstance(event, yaml.AliasEvent)
            for event in yaml.parse(file.read_text(encoding="utf-8"), yaml.SafeLoader)
        ):
            raise ValueError("it has aliases, which can make it as large as they like")
        content = ConfigParser.load_config_file(str(file))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        for _ in walk(content):
            pass
    except Exception as error:  # every library has its own
        raise InputError(f"{file} cannot be read ({error}): correct it") from error
    return content


def walk(config: Any) -> Iterator[tuple[Path_, Any]]:
    """All values of a config with their keys, from the top, each before what it holds.

    Raises:
        InputError: it has too many, or other values than JSON has.
    """
    waiting: list[tuple[Path_, Any]] = [((), config)]
    count = 0
    while waiting:
        path, value = waiting.pop()
        count += 1
        yield path, value
        parts: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            parts = list(value.items())
        elif isinstance(value, list):
            parts = list(enumerate(value))
        elif not isinstance(value, str | int | float | None):
            raise InputError(f"{_id(path)} is a {type(value).__name__}, which JSON does not have: write text")
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise InputError(f"{_id(path)} has a key that is no text: put it in quotes")
        if count + len(waiting) + len(parts) > MAX_VALUES or len(path) > MAX_DEPTH:
            raise InputError(
                f"a config has more than {MAX_VALUES} values or {MAX_DEPTH} levels: make it smaller"
            )
        waiting += [((*path, key), part) for key, part in reversed(parts)]


def executed(configs: Mapping[str, Any]) -> list[Executed]:
    """All targets, expressions, macros, readers and writers of some configs, in their order.

    Args:
        configs: content by name of the file.
    """
    return [
        found
        for name, config in configs.items()
        for path, value in walk(config)
        for found in _found(f"{name} {_id(path)}", path, value)
    ]


def logging_problems(file: Path) -> Iterator[str]:
    """What a file for Python's logging would execute or open beyond writing to the screen."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error) as error:
        yield f"cannot be read ({error}): correct it"
    for name, section in parser.items():
        for key, value in section.items():
            if key not in LOGGING_KEYS and value not in LOGGING_VALUES.get(key, ()):
                yield f"[{name}] would have Python evaluate {key}={value}: {NOT_OURS}"


def leads_out(text: str, place: str = "") -> bool:
    """Whether a text of a config is, or holds as an expression, a path or address not below ROOTS.

    Args:
        text: with the `$` of an expression.
        place: its id, "train::trainer".
    """
    if not text.startswith("$"):
        path = text.replace("\\", "/")
        return ".." in path.split("/") or re.match("/|~|[A-Za-z][A-Za-z0-9+.-]*:/", path) is not None
    statement = _parsed(text, place)
    below = {
        id(node.right)
        for node in ast.walk(statement)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _starts_from(node.left)
    }
    return any(
        leads_out(node.value.lstrip("/") if id(node) in below else node.value)
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.startswith("$")
    )


def audit_experiment(experiment: Mapping[str, Any], ids: Mapping[str, Any], *others: Path) -> None:
    """Refuse to go on where configs from elsewhere would execute what is not allowed.

    Args:
        experiment: content of its args file. Configs in this repository's own folder `configs` are trusted,
        ids: and so are those of the command line, which are in it.
        others: what MONAI parses beside its configs.

    Raises:
        InputError: such a config, or one that cannot be read.
    """
    ours = Path(bundle_root(), "configs")
    paths = [Path(bundle_root(), name).resolve() for name in (*experiment["config_file"], *others)]
    configs = {str(path): read_config(path) for path in paths if not path.is_relative_to(ours)}
    own = {key: value for key, value in experiment.items() if key not in ids}
    for found in executed({**configs, "The experiment": own}):
        if found.problem:
            raise InputError(
                f"{found.place} would execute {found.what}: {found.problem}; a config that you trust belongs "
                f"into {ours}"
            )


def _found(place: str, path: Path_, value: Any) -> Iterator[Executed]:
    """What a value would execute, and what its key would."""
    keys = _keys(path)
    key = keys[-1] if keys else ""
    owner = next((part for part in reversed(keys) if not part.isdecimal()), "")
    if key.startswith(("$", "%")):
        yield Executed(place, key, "an expression or macro as a key, which our own configs do not use")
    if key in REFUSED_KEYS or (key == "_mode_" and value not in MODES):
        yield Executed(place, f"{key}: {value}", NOT_OURS)
    if key == "_target_":
        allowed = isinstance(value, str) and value in ALLOWED["targets"]
        yield Executed(place.removesuffix("_target_").rstrip(":"), str(value), "" if allowed else NOT_OURS)
    elif isinstance(value, str):
        if value.startswith("%"):
            yield Executed(place, value, "a macro, which takes in what stands elsewhere: write it here")
        elif owner in IMPORTING_KEYS:
            known = value in ALLOWED["readers"] or re.fullmatch(r"@(\w+::)*(reader|writer)", value)
            yield Executed(place, value, "" if known else NOT_OURS)
        elif value.startswith("$"):
            yield Executed(place, value, expression_problem(value, "::".join(keys)))
        elif _is_importable(value) and value not in ALLOWED["readers"]:
            yield Executed(place, value, f"names a part of Python; {NOT_OURS}")


def _keys(path: Path_) -> list[str]:
    """The keys of a path; one such as "+train::trainer#amp" is several."""
    return [part for key in path for part in re.split("::|#", str(key).removeprefix("+"))]


def _id(path: Path_) -> str:
    return "::".join(map(str, path))


def _is_importable(text: str) -> bool:
    """Whether a text is the dotted name of something in an installed package or in `scripts`."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text):
        return False
    package = text.partition(".")[0]
    if package in sys.modules:
        return True
    found = find_spec(package)  # of the top of a package, so nothing is imported
    return found is not None and found.origin is not None  # a mere folder has none


def expression_problem(text: str, place: str = "") -> str:
    """Why an expression is not allowed, or "".

    Args:
        text: with the `$`.
        place: its id, "train::trainer".
    """
    statement = _parsed(text, place)
    if isinstance(statement, ast.Import):
        names = [name.name for name in statement.names if name.asname is None]
        return "" if names in (["monai"], ["torch"]) else f"is {ast.unparse(statement)!r}"
    if isinstance(statement, ast.Expr):
        return _problem(statement.value, frozenset())
    return "no expression of Python, or a very long one"


def _parsed(text: str, place: str = "") -> ast.stmt:
    """What MONAI makes of an expression; `pass` where it is no expression of Python of a sane length.

    MONAI puts something in place of each reference, in the quotes of a text too: only what comes of it tells.
    """
    try:
        if len(text) > MAX_EXPRESSION:
            raise ValueError("too long")
        absolute = ConfigParser.resolve_relative_ids(place, text)
        (statement,) = ast.parse(ReferenceResolver.update_refs_pattern(absolute, _Everything())[1:]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Pass()
    return statement


def _starts_from(node: ast.AST) -> bool:
    """Whether a sum of texts begins with one of ROOTS."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        node = node.left
    return any(ast.unparse(node) == f"{_REFERENCES}['{root}']" for root in ROOTS)


def _problem(node: ast.AST, bound: frozenset[str]) -> str:
    """Why a part of an expression is not allowed, or "".

    Args:
        node: the part.
        bound: arguments of the functions around it.
    """
    kind = type(node).__name__
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == _REFERENCES:
        return "" if isinstance(node.slice, ast.Constant) else f"uses {_REFERENCES}"
    if isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _root(node) not in {"", *bound}):
        name = ast.unparse(node)
        return "" if name in ALLOWED["names"] | bound else f"uses {name}"
    if isinstance(node, ast.Attribute) and node.attr not in ALLOWED["attributes"]:
        return _problem(node.value, bound) or f"uses {node.attr}"
    if kind not in ALLOWED["syntax"]:
        return f"is written with {kind}"
    if isinstance(node, ast.Call) and not (
        isinstance(node.func, ast.Attribute)
        or (isinstance(node.func, ast.Name) and node.func.id in ALLOWED["names"])
    ):
        return _problem(node.func, bound - {ast.unparse(node.func)}) or f"calls {ast.unparse(node.func)}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_importable(node.value):
        return f"names {node.value}"
    if isinstance(node, ast.Lambda):
        bound |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        roots = {name.partition(".")[0] for name in ALLOWED["names"]}
        if hidden := sorted(bound & (roots | {_REFERENCES, *dir(builtins)})):
            return f"gives {hidden[0]} another meaning"
    problems = (_problem(child, bound) for child in ast.iter_child_nodes(node))
    return next((problem for problem in problems if problem), "")


def _root(node: ast.AST) -> str:
    """The name that a dotted name begins with; "" for attributes of anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
