"""What each id of a config may be: types, ranges, and what clearly means something.

"5" stands for 5, "false" for false, one number for a cube, `~` for the home folder.
"""

from __future__ import annotations

import ast
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.data
import torch
from monai.bundle.utils import ID_SEP_KEY

from scripts.calibration import read_calibration
from scripts.errors import InputError, brief, nearest
from scripts.labels import class_names

#: More processes that load data, or threads, than any machine has a use for; a billion take it down.
MOST_WORKERS = 1024

#: Bytes of a name, on the file systems of all common machines.
LONGEST_NAME = 255

Config = Mapping[str, Any]


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


def _of_the_length(rule: Rule) -> Rule:
    """What a rule takes, or, where the trainer does not ask `length` for its epochs, only what is nothing."""

    def take(value: Any, config: Config) -> Any:
        epochs: Any = config
        for name in ("train", "trainer", "max_epochs"):
            epochs = epochs.get(name) if isinstance(epochs, Mapping) else None
        if (found := rule.take(value, config)) is not None and "@length" not in str(epochs):
            raise ValueError(f"train::trainer::max_epochs is {epochs}, which says how long: leave one out")
        return found

    return Rule(rule.says, take)


def _of_class_maps(rule: Rule) -> Rule:
    """What a rule takes, or only nothing where no whole class map is made of probabilities."""

    def take(value: Any, config: Config) -> Any:
        if (found := rule.take(value, config)) is None:
            return None
        if "segmenter" in config:
            raise ValueError("large_volume.json never has the whole class map that it needs: leave one out")
        if "@clean" not in str(config.get("to_labels") or "@clean"):
            raise ValueError("to_labels of the configs numbers objects or has other steps: leave one out")
        return found

    return Rule(rule.says, take)


def _val_measure(value: Any, config: Config) -> str:
    from scripts.judging.instances import INSTANCE_SCORES

    if choice("dice", *INSTANCE_SCORES).take(value, config) != "dice" and not config.get("instances"):
        raise ValueError("instances is false, so that labels are classes")
    return str(value)


def _threshold(value: Any, config: Config) -> float:
    found = SHARE.take(value, config)
    if found == 1:
        raise ValueError
    labels = config.get("labels")
    if isinstance(labels, dict) and len(class_names(labels)) != 2:
        raise ValueError(f"labels names {len(class_names(labels))} classes")
    return float(found)


def _calibration(value: Any, config: Config) -> dict[str, Any]:
    if not isinstance(value := _read(value), dict):
        raise ValueError
    if isinstance(labels := config.get("labels"), dict):
        try:
            read_calibration(value, labels)
        except InputError as error:
            raise ValueError(str(error)) from error
    if "@calibrated" not in str(config.get("window_inferer", "@calibrated")):
        raise ValueError(
            "window_inferer of the configs has no calibration, as before version 0.16: segment with "
            "configs/inference.json and the overlays of the training, or leave it out"
        )
    return value


def _review(value: Any, config: Config) -> dict[str, Any]:
    from scripts.review import require_review

    value = _read(value)
    if isinstance(labels := config.get("labels"), dict):
        try:
            require_review(value, labels)
        except InputError as error:
            raise ValueError(str(error)) from error
    if "@review" not in str(config.get("restore", "@review")):
        raise ValueError("restore of the configs makes none, as before version 0.16: leave it out")
    return dict(value)


def _fail_on_unlike(value: Any, config: Config) -> bool:
    if (fails := _flag(value, config)) and config.get("review") is None:
        raise ValueError("nothing says what is unlike, as review is null: take what bundle calibrate wrote")
    return fails


def _clean(value: Any, config: Config) -> dict[str, Any]:
    from scripts.transforms.classes import CleanClassesd

    if not isinstance(value := _read(value), dict) or not value:
        raise ValueError
    if isinstance(labels := config.get("labels"), dict):
        try:
            CleanClassesd("pred", labels, value)
        except InputError as error:
            raise ValueError(str(error)) from error
    return value


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
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(value).parts):
        raise ValueError(f"the name of a file or folder has at most {LONGEST_NAME} bytes")
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
    "calibration": optional(
        Rule('an object as bundle calibrate writes it, such as {"temperature": 1.3}', _calibration)
    ),
    "review": optional(Rule("an object as bundle calibrate writes it", _review)),
    "fail_on_unlike": _not_from_disk(Rule(FLAG.says, _fail_on_unlike)),
    "threshold": _of_class_maps(
        optional(Rule("a probability from 0 to below 1, for background and one other class", _threshold))
    ),
    "clean": _of_class_maps(
        optional(Rule("an object of all classes but the background, as bundle tune writes it", _clean))
    ),
    "patch_size": per_axis(whole(1), "whole numbers above 0", exact=True),
    "spacing": per_axis(number(0, above=True), "numbers above 0 (mm)", exact=False),
    "outside": choice("zeros", "mirror"),
    "reader": Rule("scripts.data.ImageReader, or another with its module", _reader),
    "flip_axes": Rule("a list of axes from 0, such as [0, 1], or []", _axes),
    "fold": whole(0),
    "check": choice("remembered", "always", "never"),
    "minutes": _of_the_length(optional(number(0, above=True))),
    "max_epochs": whole(1),
    "val_interval": whole(1),
    "val_measure": Rule('"dice", or with instances true a score of instances such as "ap50"', _val_measure),
    "patience": whole(1),
    "batch_size": whole(1),
    "samples_per_case": whole(1),
    "steps_per_epoch": optional(whole(1)),
    "learning_rate": number(0),
    "weight_decay": number(0),
    "alpha": number(0, 1),
    "channels": Rule("a list of whole numbers above 0, one for each level, such as [16, 32, 64]", _channels),
    "decoder_channels": Rule("a list like channels, one entry fewer", _channels),
    "pretrained": optional(
        Rule("the path of a file of weights, without #, or the package that has them", _path)
    ),
    "initial_weights": optional(Rule("the path of a file of weights, without #", _path)),
    "mask_block": numbers(whole(1), "a whole number above 0, or one for each of the spatial axes"),
    "mask_ratio": SHARE,
    "held_out": SHARE,
    "cache_rate": number(0, 1),
    "cache_gb": number(0),
    "cache_dir": optional(Rule("a folder that can be written or made, without #", _output)),
    "cache_dtype": choice("float32", "float16"),
    "num_workers": whole(0, MOST_WORKERS),
    "amp": FLAG,
    "memory_format": choice("contiguous", "channels_last"),
    "compile": FLAG,
    "runtime": choice("torch", "compile", "onnxruntime", "openvino", "auto"),
    "precision": choice("exact", "fast"),
    "memory_gb": optional(number(0, above=True)),
    "threads": optional(whole(1, MOST_WORKERS)),
    "section": _not_from_disk(optional(choice("testing", "validation", "training"))),
    "output_ext": Rule(choice(*OUTPUT_EXTS).says, _output_ext),
    "save_probabilities": _not_from_disk(FLAG),
    "save_spread": _not_from_disk(FLAG),
    "noise_steps": whole(1),
    "samples": whole(1),
    "sampling_steps": whole(1),
    "val_sampling_steps": whole(1),
    "tolerance": number(0),
    "norm_affine": FLAG,
    "depth": optional(whole(1)),
    "heads_mode": choice("accurate", "fast"),
    "w0": number(0),
    "sigma": number(0, above=True),
    "distance_to": choice("border", "cell"),
    **dict.fromkeys(
        (
            *("load", "load_label", "targets", "geometry", "normalise", "spatial", "intensity"),
            *("cells", "weigh", "join", "restore", "maps", "to_labels", "save", "deliver"),
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


def refusal(name: str, value: Any, rule: Rule, error: ValueError) -> str:
    """The sentence of a value that breaks its rule; the error has the reason where there is more to it."""
    because = f" ({error})" if str(error) else ""
    forgotten = " (was the value forgotten?)" if value is True and rule is not FLAG else ""
    return f"{name} is {shown(value)}{because}: use {rule.says}{forgotten}"


def shown(value: Any) -> str:
    """A value for a sentence, a text in quotes."""
    return brief(repr(value)) if isinstance(value, str) else brief(value)


def meant(name: str, value: Any) -> Any:
    """What a value of an id means.

    Raises:
        InputError: it breaks the rule of the id.
    """
    try:
        return RULES[name].take(value, {})
    except ValueError as error:
        raise InputError(refusal(name, value, RULES[name], error)) from None
