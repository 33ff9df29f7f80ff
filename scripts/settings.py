"""What a run is given, held against what it knows, before any data are read: ids, arguments, types, ranges.

MONAI adds an id that nobody reads in silence, takes the text "false" as true, and tells of a wrong number
where it is used, which may be hours later. `check` looks at the whole config at once. An id is known where
the bundle's own configs have it, MONAI reads it, something in the config refers to it, or its name begins
with `_`, which is a note. An argument of a component is known where what `_target_` names takes it.

What clearly means something is taken so: "5" for 5, "false" for false, one number for a cube, `~` for the
home folder. Else a sentence says name, value, rule and fix.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pydoc
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, EXPR_KEY, ID_REF_KEY, ID_SEP_KEY, MACRO_KEY

from scripts.errors import InputError, brief, few, nearest, root_cause
from scripts.files import read_json
from scripts.rules import FLAG, NUMBER, NUMBERS, RULES, SHARE, WHOLE, WHOLES, Config, Rule, refusal, shown

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

#: What MONAI itself looks for at the top of a config, and the keys of metadata and of a tracker.
OF_MONAI = frozenset(
    {"imports", "initialize", "run", "finalize", ConfigParser.meta_key}
    | set(DEFAULT_MLFLOW_SETTINGS["configs"])  # type: ignore[call-overload]
)

#: What MONAI itself looks for in a component.
OF_COMPONENTS = frozenset(ConfigComponent.non_arg_keys)

#: Ids that hold parts by name. Other dictionaries without `_target_` are data, whose keys are free.
SECTIONS = ("train", "validate")

#: From this likeness on, 0 to 1, an argument is a misspelt one even where any other is taken (**kwargs).
MISSPELT = 0.85

#: Packages whose modules may be imported for a look at a config that nobody has vouched for yet.
HARMLESS = ("monai", "scripts", "torch")

#: How what follows from `length` begins, which may have to be measured once the run has begun.
OF_THE_LENGTH = "$@length."

#: Ids whose rules ask what is here: no matter for a config that is only looked at.
OF_THE_MACHINE = ("device", "output_dir")


_ABSENT = object()
T = TypeVar("T")


class NotRunning(LookupError):
    """Nothing of the kind is at work."""


def running(kind: type[T]) -> T:
    """The object of a class whose method is at work further up the call stack, the nearest one.

    MONAI hands a component its arguments and tells it nothing of the config around it, nor of its file.

    Raises:
        NotRunning: there is none.
    """
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if isinstance(found := frame.f_locals.get("self"), kind):
            return found
    raise NotRunning(f"no {kind.__name__} called this")


def check(parser: ConfigParser, configs: Sequence[Path] = (CONFIGS,), trusted: bool = True) -> None:
    """Refuse what a run does not know or cannot use, and put what is meant in place of what was written.

    Args:
        parser: of the run; its config is changed in place.
        configs: folders of the bundle's own configs.
        trusted: whether expressions are evaluated, and modules imported that components name.

    Raises:
        InputError: tells of all that is wrong.
    """
    problems = [*unknown_ids(parser, configs), *_lost_references(parser), *_meanings(parser, trusted)]
    if not problems and trusted:
        problems = list(_evaluated(parser))
    if problems:
        raise InputError("; ".join(problems))


def unknown_ids(parser: ConfigParser, configs: Sequence[Path] = (CONFIGS,)) -> Iterator[str]:
    """A sentence for each id at the top, or in `SECTIONS`, that nothing knows, with the nearest known.

    Args:
        parser: the configs with ids of the command line on top.
        configs: folders of the bundle's own configs.
    """
    config = parser.get()
    known = _known(configs)
    referred = set(_references(config))
    arguments = set(inspect.signature(ConfigWorkflow).parameters)
    with_names = {part for path in referred for part in _parents(path)}
    for path, value in _places(config):
        if path in known or path in with_names or path in OF_MONAI or path.startswith("_"):
            continue
        around = path.rpartition(ID_SEP_KEY)[0]
        siblings = {name for name in known | set(config) if name.rpartition(ID_SEP_KEY)[0] == around}
        others = arguments | _inside(config) if not around else set()
        yield (
            f"--{path} {brief(value)}: no such id{nearest(path, siblings - {path}, others)}; what nothing "
            "reads has no effect: correct the name or leave it out"
        )


def _parents(path: str) -> list[str]:
    """An id and all that it lies in: "a::b" gives "a" and "a::b"."""
    parts = path.split(ID_SEP_KEY)
    return [ID_SEP_KEY.join(parts[: end + 1]) for end in range(len(parts))]


def _known(configs: Sequence[Path]) -> set[str]:
    """Ids at the top and in SECTIONS of the configs in some folders, overlays among them."""
    found: set[str] = set()
    for file in (file for folder in configs for file in folder.rglob("*.json")):
        if file.name != "metadata.json" and file.parent.name != "experiments":
            paths = (path.removeprefix("+") for path, _ in _places(read_json(file)))
            found.update(part for path in paths for part in _parents(path))
    return found


def _places(config: Config) -> Iterator[tuple[str, Any]]:
    """Ids at the top and in SECTIONS with their values; in an overlay "train::a" is one of the top."""
    for key, value in config.items():
        name = ReferenceResolver.normalize_id(str(key))
        yield name, value
        if name in SECTIONS and isinstance(value, dict) and "_target_" not in value:
            yield from ((f"{name}{ID_SEP_KEY}{part}", inner) for part, inner in value.items())


def _inside(config: Config) -> set[str]:
    """Ids of what lies in the parts of a config, such as "train::trainer::max_epochs"."""
    return {
        ID_SEP_KEY.join((*path, key))
        for path, component in _components(config)
        for key in component
        if key not in OF_COMPONENTS
    }


def _references(value: Any) -> Iterator[str]:
    """Ids that a part of a config refers to."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _references(part)
    elif isinstance(value, str) and ID_REF_KEY in value:
        text = ReferenceResolver.normalize_id(value)
        yield from re.findall(rf"{ID_REF_KEY}(\w+(?:{ID_SEP_KEY}\w+)*)", text)


def _components(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All dictionaries with a `_target_`, or with what looks like one, and where they are."""
    if isinstance(value, dict):
        if any(re.fullmatch("_\\w+_", str(key)) for key in value) and path:
            yield path, value
        parts: Any = value.items()
    else:
        parts = enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if path or key != ConfigParser.meta_key:
            yield from _components(part, (*path, str(key)))


def _lost_references(parser: ConfigParser) -> Iterator[str]:
    """A sentence for each id that `run`, or what it needs, refers to and that is nowhere."""
    waiting, seen = ["run"], {"run"}
    for place in waiting:  # grows on the way
        for reference in _needed(parser.get(place)):
            if reference in seen:
                continue
            seen.add(reference)
            if reference in parser:
                waiting.append(reference)
            elif not ReferenceResolver.allow_missing_reference:
                around = reference.rpartition(ID_SEP_KEY)[0]
                beside = parser.get(around)
                names = beside if isinstance(beside, dict) else ()
                siblings = [f"{around}{ID_SEP_KEY}{name}".removeprefix(ID_SEP_KEY) for name in names]
                said = nearest(reference, siblings, parser.get())
                yield f"{place} refers to @{reference}, an id that is nowhere{said}"


def _needed(value: Any) -> Iterator[str]:
    """Ids that MONAI resolves before a part of a config."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _needed(part)
    elif isinstance(value, str) and f"{ID_REF_KEY}{ID_SEP_KEY}" not in value:  # relative until it is parsed
        yield from ReferenceResolver.match_refs_pattern(value)


def _is_text_of_monai(value: Any) -> bool:
    """Whether a value is a reference, an expression or a macro."""
    return isinstance(value, str) and value.startswith((ID_REF_KEY, EXPR_KEY, MACRO_KEY))


# Components and their arguments


def _meanings(parser: ConfigParser, trusted: bool) -> Iterator[str]:
    """Put in what is meant by values and arguments; a sentence for each that means nothing."""
    meant: dict[str, Any] = {}
    yield from _arguments(parser, trusted, meant)
    for name, rule in RULES.items():
        value = _written(parser, name)
        if value is _ABSENT or _is_text_of_monai(value) or (isinstance(value, dict) and "_target_" in value):
            continue
        if name in OF_THE_MACHINE and not trusted:
            continue
        config = {**parser.get(), **meant}
        try:
            taken = rule.take(value, config)
        except ValueError as error:
            yield refusal(name, value, rule, error)
        else:
            if repr(taken) != repr(value):  # 16.0 equals 16
                meant[name] = taken
    if meant:
        parsed = bool(parser.ref_resolver.items)
        parser.update(meant)
        if parsed:  # what was resolved of it before is so anew
            parser.parse()


def _written(parser: ConfigParser, name: str) -> Any:
    """The value of an id; MONAI compares one that is not there with the spelling of all that are."""
    value = parser.get()
    for part in name.split(ID_SEP_KEY):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _evaluated(parser: ConfigParser) -> Iterator[str]:
    """A sentence for each expression whose value breaks its rule."""
    for name, rule in RULES.items():
        raw = _written(parser, name)
        if not isinstance(raw, str) or not raw.startswith((ID_REF_KEY, EXPR_KEY)):
            continue
        if raw.removeprefix(ID_REF_KEY) in RULES.keys() - {name} or raw.startswith(OF_THE_LENGTH):
            continue  # which is told of itself
        try:
            value = parser.get_parsed_content(name)
        except Exception as error:
            if isinstance(cause := root_cause(error), InputError):
                raise cause from error
            yield f"{name} is {raw!r}, which has no value ({cause}): correct it"
            continue
        try:
            rule.take(value, parser.get())
        except ValueError as error:
            yield refusal(name, value, rule, error)


def _arguments(parser: ConfigParser, trusted: bool, meant: dict[str, Any]) -> Iterator[str]:
    """A sentence for each target that is not there and each argument that its target does not take.

    Args:
        parser: of the run.
        trusted: see `check`.
        meant: gets the values of the arguments that are written as text.
    """
    signatures: dict[str, inspect.Signature | str | None] = {}
    for path, component in _components(parser.get()):
        place = ID_SEP_KEY.join(path)
        target = component.get("_target_")
        for key in component.keys() - OF_COMPONENTS:
            alike = difflib.get_close_matches(key, OF_COMPONENTS, 1, MISSPELT)
            if re.fullmatch(r"_\w+_", key) and (target is not None or alike):
                said = nearest(key, OF_COMPONENTS)
                yield f"{place}{ID_SEP_KEY}{key} {brief(component[key])}: MONAI knows no such key{said}"
        if not isinstance(target, str) or _is_text_of_monai(target) or component.get("_disabled_") is True:
            continue
        if target not in signatures:
            signatures[target] = _signature(parser, target, trusted)
        signature = signatures[target]
        if isinstance(signature, str):
            yield f"{place} is {target}: {signature}"
        elif signature is not None:
            yield from _wrong_arguments(place, component, signature, meant)


def _wrong_arguments(
    place: str, component: dict[str, Any], signature: inspect.Signature, meant: dict[str, Any]
) -> Iterator[str]:
    kinds = inspect.Parameter
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is kinds.VAR_KEYWORD for parameter in signature.parameters.values())
    for key, value in component.items():
        if re.fullmatch(r"_\w+_", key):
            continue
        name = f"{place}{ID_SEP_KEY}{key}"
        if key in named:
            kind = SHARE if key == "prob" or key.endswith("_prob") else _kind(named[key])
            if value is True and kind in (WHOLE, NUMBER, SHARE, WHOLES, NUMBERS):
                yield f"{name} is True: use {kind.says} (was the value forgotten?)"
            elif isinstance(value, str | list | int | float) and kind and not _is_text_of_monai(value):
                try:
                    taken = kind.take(value, {})
                except ValueError:
                    if kind is SHARE or (isinstance(value, str) and kind is not FLAG):
                        yield f"{name} is {shown(value)}: use {kind.says}"
                    continue  # the component has its own word for it
                if repr(taken) != repr(value):
                    meant[name] = taken
            continue
        if not takes_any or difflib.get_close_matches(key, named, 1, MISSPELT):
            said = nearest(key, named) or f"; it takes {few(sorted(named))}"
            yield f"--{name} {brief(value)}: {component['_target_']} takes no such argument{said}"


def _kind(parameter: inspect.Parameter) -> Rule | None:
    """The rule of an argument that is a flag, a number or numbers, or nothing, by its annotation."""
    annotation = parameter.annotation
    parts = set(re.findall(r"\w+", annotation.__name__ if isinstance(annotation, type) else str(annotation)))
    parts -= {"None", "NoneType", "Optional", "Union", "typing"}
    if several := parts & {"Sequence", "list", "List", "tuple", "Tuple"}:
        kinds = {"int": WHOLES, "float": NUMBERS}
    else:
        kinds = {"bool": FLAG, "int": WHOLE, "float": NUMBER}
    parts -= several
    if parts == {"int", "float"}:
        parts = {"float"}
    return kinds.get(parts.pop()) if len(parts) == 1 else None


def _signature(parser: ConfigParser, target: str, trusted: bool) -> inspect.Signature | str | None:
    """What a target takes; why it is not there; None where nobody can tell."""
    module = parser.locator.get_component_module_name(target)
    name = target if module is None else f"{module if isinstance(module, str) else module[0]}.{target}"
    package = name.partition(".")[0]
    if not (trusted or package in HARMLESS):
        return None
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return None  # it says itself what it lacks
    if found is None:
        return f"there is no such class or function{_nearest_target(parser, target)}"
    try:
        return inspect.signature(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _nearest_target(parser: ConfigParser, target: str) -> str:
    package, _, name = target.rpartition(".")
    if not package:
        names = {name for name in parser.locator._components_table or {} if not name.startswith("_")}
        return nearest(target, names)
    try:
        names = set(dir(importlib.import_module(package)))
    except ImportError:
        return f"; {package} cannot be imported, check it and PYTHONPATH"
    said = nearest(name, {each for each in names if not each.startswith("_")})
    return said.replace("did you mean ", f"did you mean {package}.")
