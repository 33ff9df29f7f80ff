"""What a run is given, held against what it knows, before any data are read: ids, arguments, types, ranges.

MONAI adds an id that nobody reads in silence, takes the text "false" as true, and tells of a wrong number
where it is used, which may be hours later. `check` looks at the whole config at once. An id is known where
the bundle's own configs have it, MONAI reads it, something in the config refers to it, or its name begins
with `_`, which is a note. An argument of a component is known where what `_target_` names takes it.

What clearly means something is taken so: "5" for 5, "false" for false, one number for a cube, `~` for the
home folder. Else a sentence says name, value, rule and fix.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import math
import os
import pydoc
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import monai.data
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, EXPR_KEY, ID_REF_KEY, ID_SEP_KEY, MACRO_KEY

from scripts.errors import InputError, few, root_cause
from scripts.files import read_json
from scripts.labels import class_names

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

#: From this likeness on, 0 to 1, a known name may have been meant by an unknown one.
ALIKE = 0.6

#: From this likeness on, 0 to 1, an argument is a misspelt one even where any other is taken (**kwargs).
MISSPELT = 0.85

#: Packages whose modules may be imported for a look at a config that nobody has vouched for yet.
HARMLESS = ("monai", "scripts", "torch")

#: Ids whose rules ask what is here: no matter for a config that is only looked at.
OF_THE_MACHINE = ("device", "output_dir")

#: More processes that load data than any machine has a use for; a billion take it down.
MOST_WORKERS = 1024

#: A value in a sentence is cut off here. Characters.
LONGEST_VALUE = 60

Config = Mapping[str, Any]
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
            f"--{path} {_brief(value)}: no such id{nearest(path, siblings - {path}, others)}; what nothing "
            "reads has no effect: correct the name or leave it out"
        )


def nearest(name: str, known: Collection[str], others: Collection[str] = ()) -> str:
    """The known name that is most like one, as "; did you mean ...", or "" where none is.

    Args:
        name: what was given.
        known: names that are looked at first.
        others: those that count where none of these is like it.
    """
    for names in (known, others):
        plain = {each: _plain(each) for each in names}
        if found := difflib.get_close_matches(_plain(name), plain.values(), 1, ALIKE):
            best = [each for each in plain if plain[each] == found[0]]
            best.sort(key=lambda each: -difflib.SequenceMatcher(None, name, each).ratio())
            return f"; did you mean {best[0]}"
    ends = sorted(each for each in others if each.rpartition(ID_SEP_KEY)[2] == name)
    return f"; did you mean {ends[0]}" if ends else ""


def _plain(name: str) -> str:
    """A name without case, hyphens and dots, which people write in place of `_` and `::`."""
    return re.sub(r"[\W_]+", "", name).lower() or name


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


def _brief(value: Any) -> str:
    """A value for a sentence."""
    if isinstance(value, dict) and "_target_" in value:
        value = value["_target_"]
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


# Components and their arguments


def _meanings(parser: ConfigParser, trusted: bool) -> Iterator[str]:
    """Put in what is meant by values and arguments; a sentence for each that means nothing."""
    meant: dict[str, Any] = {}
    yield from _arguments(parser, trusted, meant)
    for name, rule in RULES.items():
        value = parser.get(name, _ABSENT)
        if value is _ABSENT or _is_text_of_monai(value) or (isinstance(value, dict) and "_target_" in value):
            continue
        if name in OF_THE_MACHINE and not trusted:
            continue
        config = {**parser.get(), **meant}
        try:
            taken = rule.take(value, config)
        except ValueError as error:
            yield _refusal(name, value, rule, error)
        else:
            if repr(taken) != repr(value):  # 16.0 equals 16
                meant[name] = taken
    if meant:
        parsed = bool(parser.ref_resolver.items)
        parser.update(meant)
        if parsed:  # what was resolved of it before is so anew
            parser.parse()


def _evaluated(parser: ConfigParser) -> Iterator[str]:
    """A sentence for each expression whose value breaks its rule."""
    for name, rule in RULES.items():
        raw = parser.get(name)
        if not isinstance(raw, str) or not raw.startswith((ID_REF_KEY, EXPR_KEY)):
            continue
        if raw.removeprefix(ID_REF_KEY) in RULES.keys() - {name}:
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
            yield _refusal(name, value, rule, error)


def _refusal(name: str, value: Any, rule: Rule, error: ValueError) -> str:
    because = f" ({error})" if str(error) else ""
    forgotten = " (was the value forgotten?)" if value is True and rule is not FLAG else ""
    return f"{name} is {_shown(value)}{because}: use {rule.says}{forgotten}"


def _shown(value: Any) -> str:
    return _brief(repr(value)) if isinstance(value, str) else _brief(value)


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
                yield f"{place}{ID_SEP_KEY}{key} {_brief(component[key])}: MONAI knows no such key{said}"
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
            if value is True and kind in (WHOLE, NUMBER, SHARE):
                yield f"{name} is True: use {kind.says} (was the value forgotten?)"
            elif isinstance(value, str | list | int | float) and kind and not _is_text_of_monai(value):
                try:
                    taken = kind.take(value, {})
                except ValueError:
                    if kind is SHARE or (isinstance(value, str) and kind is not FLAG):
                        yield f"{name} is {_shown(value)}: use {kind.says}"
                    continue  # the component has its own word for it
                if repr(taken) != repr(value):
                    meant[name] = taken
            continue
        if not takes_any or difflib.get_close_matches(key, named, 1, MISSPELT):
            said = nearest(key, named) or f"; it takes {few(sorted(named))}"
            yield f"--{name} {_brief(value)}: {component['_target_']} takes no such argument{said}"


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


# Types and ranges

_ABSENT = object()


@dataclass(frozen=True)
class Rule:
    """What an id may be.

    Attributes:
        says: to follow the word "use".
        take: from what was written, and the config around it, to what is meant; a ValueError where it means
            nothing, with the reason where there is more to it than `says`.
    """

    says: str
    take: Callable[[Any, Config], Any]


def _flag(value: Any, config: Config) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    text = value.strip().lower() if isinstance(value, str) else None
    if isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    if text in words:
        return words[text]
    if text in ("0", "1"):
        return text == "1"
    raise ValueError


def _as_number(value: Any) -> float:
    """A finite number, of text too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def number(low: float = -math.inf, high: float = math.inf, above: bool = False) -> Rule:
    """A number from `low` to `high`, or, `above`, above `low`."""

    def take(value: Any, config: Config) -> float:
        found = _as_number(value)
        if not low <= found <= high or (above and found == low):
            raise ValueError
        return value if isinstance(value, int | float) else found

    limits = f" above {low:g}" if above else f" of {low:g} or more" if low > -math.inf else ""
    return Rule(f"{low:g} to {high:g}" if high < math.inf else f"a number{limits}", take)


def whole(low: int = -sys.maxsize, high: int = sys.maxsize) -> Rule:
    """A whole number from `low` to `high`."""

    def take(value: Any, config: Config) -> int:
        found = _as_number(value)
        if found != int(found) or not low <= found <= high:
            raise ValueError
        return int(value) if isinstance(value, int | str) and str(value).strip().isdecimal() else int(found)

    limits = f" of {low} or more" if low > -sys.maxsize else ""
    return Rule(
        f"a whole number from {low} to {high}" if high < sys.maxsize else f"a whole number{limits}", take
    )


def choice(*allowed: str) -> Rule:
    """One of some texts."""

    def take(value: Any, config: Config) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return Rule(" or ".join(map(repr, allowed)), take)


def optional(rule: Rule) -> Rule:
    """What a rule takes, or nothing."""
    return Rule(
        f"{rule.says}, or null", lambda value, config: None if value is None else rule.take(value, config)
    )


def _read(value: Any) -> Any:
    """What a text holds as numbers, lists or objects; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError from None


def _as_list(value: Any) -> list[Any]:
    """A list, of text too."""
    value = _read(value)
    if not isinstance(value, list | tuple):
        raise ValueError
    return list(value)


def per_axis(rule: Rule, unit: str, exact: bool) -> Rule:
    """A list with a value for each axis; one value stands for all axes.

    Args:
        rule: of each value.
        unit: for the sentence.
        exact: whether the three of a volume are refused for a picture.
    """

    def take(value: Any, config: Config) -> list[Any]:
        dims = config.get("spatial_dims")
        try:
            values = [rule.take(value, config)] * dims  # type: ignore[operator]
        except (ValueError, TypeError):
            values = [rule.take(part, config) for part in _as_list(value)]
        if isinstance(dims, int) and len(values) not in ((dims,) if exact else (dims, 3)):
            raise ValueError(f"there are {dims} spatial axes") from None
        if not values:
            raise ValueError
        return values

    return Rule(f"a list of {unit}, one for each of the spatial axes, or one for all", take)


def numbers(rule: Rule, says: str) -> Rule:
    """A value, or a list of values, or of lists."""

    def take(value: Any, config: Config) -> Any:
        if isinstance(value := _read(value), list | tuple):
            return [take(part, config) for part in value]
        return None if value is None else rule.take(value, config)

    return Rule(says, take)


def _window(value: Any, config: Config) -> Any:
    """One number stays one: 0 or less is the size of the image."""
    sizes = per_axis(WHOLE, "", exact=True).take(value, config)
    return sizes if isinstance(_read(value), list | tuple) else sizes[0]


def _not_from_disk(rule: Rule) -> Rule:
    """What a rule takes, or, where volumes go from disk to disk, only what is nothing."""

    def take(value: Any, config: Config) -> Any:
        if (found := rule.take(value, config)) and "segmenter" in config:
            raise ValueError("large_volume.json has no use for it: leave it out")
        return found

    return Rule(rule.says, take)


def _output_ext(value: Any, config: Config) -> str:
    ext = choice(*OUTPUT_EXTS).take(value, config)
    if ext == ".png" and config.get("spatial_dims") == 3:
        raise ValueError("a .png holds no volume")
    return str(ext)


def _channels(value: Any, config: Config) -> list[Any]:
    def take(level: Any) -> Any:
        deeper = isinstance(level, list | tuple)
        return [take(part) for part in level] if deeper else whole(1).take(level, config)

    levels = take(_as_list(value))
    if len(levels) < 2 or not all(level for level in levels):
        raise ValueError
    return levels


def _axes(value: Any, config: Config) -> list[int]:
    axis = whole(0, 2)
    try:
        return [axis.take(value, config)]
    except ValueError:
        return [axis.take(part, config) for part in _as_list(value)]


def _labels(value: Any, config: Config) -> dict[str, int]:
    value = _read(value)
    if not isinstance(value, dict) or not value:
        raise ValueError
    if not all(isinstance(name, str) for name in value):
        raise ValueError("names come first, then values")
    labels: dict[str, int] = {}
    for name, number_ in value.items():
        labels[name] = whole().take(number_, config)
        if labels[name] < 0:
            raise ValueError(f"{name} is {labels[name]}")
        if same := [other for other in labels if labels[other] == labels[name] and other != name]:
            raise ValueError(f"{same[0]} and {name} have the same value")
    names = class_names(labels)
    if len(names) < 2:
        raise ValueError("there are fewer than two classes")
    if any(name.lower() == "background" for name in names[1:]):
        raise ValueError(f"the first class is the one that is not scored, {names[0]}, and not background")
    return labels


def _modes(value: Any, config: Config) -> dict[str, Any]:
    if not isinstance(value := _read(value), dict) or not value:
        raise ValueError
    if far := sorted(key for key in value if key not in KEYS and nearest(str(key), KEYS)):
        raise ValueError(f"there is no {far[0]}{nearest(far[0], KEYS)}")
    return value


def _path(value: Any, config: Config) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    if "\0" in value:
        raise ValueError("there is a NUL in it")
    if ID_SEP_KEY in value or "#" in value:
        raise ValueError(f"MONAI reads # as {ID_SEP_KEY}")
    return os.path.expanduser(value)


def _paths(value: Any, config: Config) -> Any:
    if isinstance(value, list | tuple) and value:
        return [_path(part, config) for part in value]
    return _path(value, config)


def _output(value: Any, config: Config) -> str:
    path = _path(value, config)
    place = Path(path).absolute()
    there = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise ValueError(f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"nothing can be written in {there}")
    return path


def _device(value: Any, config: Config) -> Any:
    """A device that is there; a number is that of a GPU."""
    if isinstance(value, bool) or not isinstance(value, str | int | torch.device):
        raise ValueError
    text = str(value).strip()
    try:
        device = torch.device(f"cuda:{text}" if text.isdecimal() else text)
    except RuntimeError:
        raise ValueError from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"PyTorch finds {count or 'no'} GPU here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("PyTorch finds none here")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError
    return value if isinstance(value, torch.device) else str(device)


def _reader(value: Any, config: Config) -> str:
    """The name of a reader: of MONAI's, or of any other with its module."""
    if not isinstance(value, str):
        raise ValueError
    readers = [name for name in dir(monai.data) if name.endswith("Reader")]
    if "." not in value and value not in readers:
        raise ValueError(f"MONAI has no such reader{nearest(value, readers)}")
    return value


FLAG = Rule("true or false", _flag)
WHOLE, NUMBER = whole(), number()
SHARE = number(0, 1)
WHOLES = numbers(WHOLE, "a whole number, or a list of them")
NUMBERS = numbers(NUMBER, "a number, or a list of them")
ONE_IMAGE = Rule(
    "1, as images have sizes of their own; window_inferer::sw_batch_size is the number of tiles at once",
    whole(1, 1).take,
)
KEYS = ("image", "label")
OUTPUT_EXTS = (".nii.gz", ".nii", ".png")
_TRANSFORMS = Rule("a list of transforms", lambda value, config: _as_list(value))

#: What the ids are; those of other ids are told in their sentences, so their order matters.
RULES: dict[str, Rule] = {
    "spatial_dims": whole(2, 3),
    "in_channels": whole(1),
    "device": Rule("cpu, cuda, cuda:N or mps, of what is there", _device),
    "seed": whole(0, 2**32 - 1),
    "dataset_dir": Rule("the path of a folder, without #", _path),
    "output_dir": Rule("a folder that can be written or made, without #", _output),
    "checkpoint": Rule("the path of a file, without #", _paths),
    "resume": FLAG,
    "labels": Rule("an object of names and whole numbers of 0 or more, background first", _labels),
    "instances": FLAG,
    "patch_size": per_axis(whole(1), "whole numbers above 0", exact=True),
    "spacing": per_axis(number(0, above=True), "numbers above 0 (mm)", exact=False),
    "outside": choice("zeros", "mirror"),
    "reader": Rule("scripts.data.ImageReader, or another with its module", _reader),
    "flip_axes": Rule("a list of axes from 0, such as [0, 1], or []", _axes),
    "fold": whole(0),
    "check": choice("remembered", "always", "never"),
    "max_epochs": whole(1),
    "val_interval": whole(1),
    "patience": whole(1),
    "batch_size": whole(1),
    "samples_per_case": whole(1),
    "learning_rate": number(0),
    "weight_decay": number(0),
    "alpha": number(0, 1),
    "channels": Rule("a list of whole numbers above 0, one for each level, such as [16, 32, 64]", _channels),
    "cache_rate": number(0, 1),
    "num_workers": whole(0, MOST_WORKERS),
    "amp": FLAG,
    "memory_format": choice("contiguous", "channels_last"),
    "compile": FLAG,
    "runtime": choice("torch", "compile", "onnxruntime", "openvino", "auto"),
    "memory_gb": optional(number(0, above=True)),
    "section": _not_from_disk(optional(choice("testing", "validation", "training"))),
    "output_ext": Rule(choice(*OUTPUT_EXTS).says, _output_ext),
    "save_probabilities": _not_from_disk(FLAG),
    "tolerance": number(0),
    "norm_affine": FLAG,
    "w0": number(0),
    "sigma": number(0, above=True),
    "distance_to": choice("border", "cell"),
    **dict.fromkeys(
        (
            *("load", "load_label", "targets", "geometry", "normalise", "spatial", "intensity"),
            *("cells", "weigh", "join", "restore", "to_labels", "save", "deliver"),
        ),
        _TRANSFORMS,
    ),
    "interpolation": Rule("an object of keys, such as image and label, and how each is resampled", _modes),
    "split::check": choice("remembered", "always", "never"),
    # where hosts and habits set them
    "window_inferer::roi_size": Rule("a whole number, or one for each of the spatial axes", _window),
    "train::trainer::max_epochs": whole(1),
    "train::dataloader::batch_size": whole(1),
    "train::dataloader::num_workers": whole(0, MOST_WORKERS),
    "train::sampler::repeats": whole(1),
    "train::dataset::cache_rate": number(0, 1),
    "validate::dataset::cache_rate": number(0, 1),
    "validate::dataloader::batch_size": ONE_IMAGE,
    "dataloader::batch_size": ONE_IMAGE,
    "optimizer::lr": number(0),
    "optimizer::weight_decay": number(0),
}


def meant(name: str, value: Any) -> Any:
    """What a value of an id means.

    Raises:
        InputError: it breaks the rule of the id.
    """
    try:
        return RULES[name].take(value, {})
    except ValueError as error:
        raise InputError(_refusal(name, value, RULES[name], error)) from None
