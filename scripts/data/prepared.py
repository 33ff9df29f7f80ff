"""Cases as they are before their first random transform, kept in files for the trainings to come.

A case is loaded, oriented, resampled and normalised once. What comes out is a file of safetensors: its arrays
are mapped into memory when they are asked for, so that several trainings share one copy of them and a data
set may be larger than the memory, and what belongs to them (affines, applied operations, names) is JSON in
its header. Nothing in it can run. A file is there whole or not at all.

Its name is a hash of all that its content depends on: the files of the case, by size, time and ends as for
`remembered`, the settings of the transforms, the code and the versions of what they are made of, and, as
resampling rounds differently on others, processor and threads. Whatever changes leads to another file; the
old one goes when room is needed, the longest unused first.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import CommonKeys as Keys
from monai.utils import TraceKeys
from safetensors import safe_open
from safetensors.torch import save_file

from scripts.errors import told
from scripts.files import atomic_write, fingerprint, free_bytes, sha256, user_cache
from scripts.machine import gigabytes, processor

logger = logging.getLogger(__name__)

#: Most of the disk that prepared cases take, as a share of what would be free without them.
SHARE = 0.5

#: What was used within so many seconds before a training began is in use.
IN_USE = 60.0

#: How the names of files end.
SUFFIX = ".safetensors"

#: Integer types from small to large.
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)

#: Whose results may differ from version to version; of these a class is told by its name.
PACKAGES = ("monai", "torch", "numpy", "scipy", "scikit-image", "nibabel", "pillow", "tifffile")

#: What transforms of ours use beside the modules that they lie in.
CODE = [
    *sorted(Path(__file__).parent.glob("*.py")),
    *sorted((Path(__file__).parents[1] / "transforms").glob("*.py")),
    *(Path(__file__).parents[1] / f"{name}.py" for name in ("affines", "labels")),
]

#: Two cases of one process are not written at the same time: they may be the same one.
_WRITING = threading.Lock()


class UnkeptError(Exception):
    """Something that cannot be told from others by what is known of it, or that a file cannot hold."""


@dataclass
class HeldCase:
    """A case between its deterministic and its random transforms.

    Attributes:
        item: what the deterministic transforms gave, tensors in the smallest type that holds them.
        dtypes: what these tensors were before, where it was another type.
        mapped: the tensors lie in a file.
    """

    item: Any
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    mapped: bool = False

    @classmethod
    def of(cls, item: Any, images: torch.dtype = torch.float32) -> HeldCase:
        """Hold what the deterministic transforms gave.

        Args:
            item: tensors and other things by their keys; anything else is held as it is.
            images: float16 rounds the image, unless that is beyond its range.
        """
        if not isinstance(item, dict):
            return cls(item)
        held, dtypes = dict(item), {}
        for key, value in item.items():
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                dtype = _smallest(value, images if key == Keys.IMAGE else None)
                if dtype != value.dtype:
                    held[key], dtypes[key] = _as_type(value, dtype), value.dtype
        return cls(held, dtypes)

    def whole(self) -> Any:
        """The case as the transforms gave it; what is held in its own type is shared."""
        if not self.dtypes:
            return self.item
        return {**self.item, **{key: _as_type(self.item[key], own) for key, own in self.dtypes.items()}}

    def copy(self, read: Iterable[Any] = ()) -> Any:
        """A copy of the case for a transform, which may change it.

        A copy of a volume of 256 x 256 x 256 and its label takes as long as a training step.

        Args:
            read: keys that the transform reads alone, whatever the type: they are shared.
        """
        if not isinstance(self.item, dict):
            return deepcopy(self.item)
        copied = [key for key in self.item if key not in set(read)]
        others = HeldCase(
            deepcopy({key: self.item[key] for key in copied}),
            {key: self.dtypes[key] for key in copied if key in self.dtypes},
        )
        return {**self.item, **others.whole()}


def _smallest(tensor: torch.Tensor, floats: torch.dtype | None) -> torch.dtype:
    """The smallest type that holds a tensor."""
    own = tensor.dtype
    if not tensor.numel() or tensor.dtype == torch.bool:
        return own
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    if floats is not None and own.is_floating_point and floats.itemsize < own.itemsize:
        largest = plain[plain.isfinite()].abs().max() if plain.isfinite().any() else 0
        return floats if largest <= torch.finfo(floats).max else own
    if own in (torch.int16, torch.int32, torch.int64):
        low, high = (int(end) for end in plain.aminmax())
        fits = (d for d in INTEGERS if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max)
        smallest = next(fits, own)
        return smallest if smallest.itemsize < own.itemsize else own
    return own


def _as_type(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy in another type, with the same meta data."""
    if not isinstance(tensor, MetaTensor):
        return tensor.to(dtype)
    made = tensor.as_tensor().to(dtype)
    return MetaTensor(made, meta=tensor.meta, applied_operations=tensor.applied_operations)


class Prepared:
    """A folder of prepared cases.

    That it cannot be written, or has no more room, is said once, and the training goes on without.

    Args:
        cache_gb: most that the folder holds, in GB, and never more than half of what its disk would have
            free without it; 0: no case is kept, and none looked for.
        cache_dir: the folder; None for `prepared` in the user's cache folder. It is made so that the user
            alone may look into it.
        cache_dtype: type of images, "float32", or "float16", which rounds them to 3 digits in half the room;
            an image beyond 65504 stays in float32.
    """

    def __init__(
        self, cache_gb: float = 0.0, cache_dir: str | None = None, cache_dtype: str = "float32"
    ) -> None:
        self.images = getattr(torch, cache_dtype)
        self.most = 1e9 * cache_gb
        self.place = Path()
        try:
            self.place = Path(cache_dir) if cache_dir else user_cache() / "prepared"
        except RuntimeError:  # no home
            self.most = 0.0
        self.started = time.time() - IN_USE
        self.room = 0.0  # bytes that may be written before the next look at the folder
        #: Whether no more is written, in all data workers.
        self.closed = torch.zeros(1, dtype=torch.bool).share_memory_()

    def __bool__(self) -> bool:
        return self.most > 0

    def limit(self) -> float:
        """Bytes that the folder may take."""
        return self._limit(sum(size for _, _, size in self._entries())) if self else 0.0

    def rules(self, transform: Compose, first_random: int | None) -> str | None:
        """A hash of the settings and the code of deterministic transforms; None where nothing is kept.

        Args:
            transform: those of the data set.
            first_random: the index of the first that is left out, or None.
        """
        if not self:
            return None
        own = {name: getattr(transform, name, None) for name in ("lazy", "overrides", "map_items")}
        described = _Description()
        try:
            settings = described.of([own, transform.transforms[:first_random], self.images])
        except UnkeptError as error:
            logger.info("cases are not kept on disk, as the transforms hold %s", error)
            return None
        machine = [processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
        return _hash([settings, described.code(), machine])

    def key(self, case: Any, rules: str | None) -> str | None:
        """The name of a case as it is now; None where it is not kept."""
        if rules is None or not isinstance(case, Mapping) or not _is_file(case.get(Keys.IMAGE)):
            return None
        try:
            return _hash([rules, _Description().of(case)])
        except (OSError, UnkeptError):  # the file is gone, and loading it says so
            return None

    def read(self, key: str) -> HeldCase | None:
        """A case, mapped into memory; None if it is not there or not as it was written."""
        file = self._file(key)
        try:
            held = _from_file(file)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file makes of its reader
            logger.info("%s is damaged, and its case is prepared anew: %s", file, error)
            return None
        with suppress(OSError):  # of somebody else
            os.utime(file)
        return held

    def keep(self, key: str, held: HeldCase) -> HeldCase:
        """Write a case, and give it as it lies in its file; as it was where that cannot be."""
        if self.closed.item():
            return held
        try:
            tensors, described = _encoded(held)
            size = sum(tensor.nbytes for tensor in tensors.values()) + len(described)
            with _WRITING:
                if not self._has_room(size):
                    self._close(
                        f"{self.place} holds {gigabytes(self.limit())} at most, as cache_gb is "
                        f"{self.most / 1e9:g} and half of a free disk is left, and trainings use all of it"
                    )
                    return held
                with atomic_write(self._file(key)) as temporary:
                    save_file(tensors, temporary, metadata={"case": described})
            self.room -= size
            return self.read(key) or held
        except UnkeptError as error:
            self._close(f"a file does not hold {error}")
        except Exception as error:
            self._close(told(error) or str(error) or type(error).__name__)
        return held

    def _close(self, because: str) -> None:
        if not self.closed.item():
            self.closed[0] = True
            logger.warning(
                "further cases are held in memory, as far as it goes, and not on disk: %s", because
            )

    def _file(self, key: str) -> Path:
        return self.place / key[:2] / f"{key[2:]}{SUFFIX}"

    def _entries(self) -> list[tuple[float, Path, int]]:
        """Time of the last use, file and bytes of what lies in the folder, the longest unused first."""
        found = []
        for file in self.place.glob(f"*/*{SUFFIX}"):
            with suppress(OSError):  # another process removed it
                about = file.stat()
                found.append((about.st_mtime, file, about.st_size))
        return sorted(found)

    def _limit(self, used: float) -> float:
        return min(self.most, SHARE * (free_bytes(self.place.absolute()) + used))

    def _has_room(self, size: int) -> bool:
        """Whether a case may be written, after what no training has used for longest was removed."""
        if size <= self.room:
            return True
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = self._entries()
        used = sum(bytes_ for _, _, bytes_ in entries)
        limit = self._limit(used)
        for last, file, bytes_ in entries:
            if used + size <= limit or last >= self.started:
                break
            with suppress(OSError):  # on Windows one that is mapped
                file.unlink(missing_ok=True)
                used -= bytes_
        # others write too: what is left is shared out in parts, with a look after each
        self.room = max((limit - used) / 4, size) if used + size <= limit else 0.0
        return self.room > 0


def _is_file(name: Any) -> bool:
    names = name if isinstance(name, list | tuple) else [name]
    return bool(names) and all(isinstance(n, str | os.PathLike) and os.path.isfile(n) for n in names)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Description:
    """What transforms and cases are, as JSON.

    Of objects these are their classes and the values of all their attributes, of the name of a file that is
    there the file's size, time and ends too.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.seen: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """Describe a value.

        Raises:
            UnkeptError: there is something in it that only its process knows.
        """
        if isinstance(value, Enum):
            return [self._name(type(value)), value.name]
        if isinstance(value, str | os.PathLike) and os.path.isfile(value):
            file = Path(value).absolute()
            return [str(value), str(file), *fingerprint(file), file.stat().st_mtime_ns]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, list | tuple):
            return [type(value).__name__, *map(self.of, value)]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(json.dumps(self.of(part)) for part in value)]
        if isinstance(value, Mapping):
            return ["mapping", *([self.of(key), self.of(part)] for key, part in value.items())]
        if isinstance(value, torch.Tensor | np.ndarray | np.generic):
            array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
            if array.dtype.hasobject:
                raise UnkeptError("an array of objects")
            return ["array", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        if isinstance(value, torch.dtype | torch.device | np.dtype | os.PathLike):
            return [type(value).__name__, str(value)]
        if isinstance(value, functools.partial):
            return ["partial", *map(self.of, (value.func, value.args, value.keywords))]
        if isinstance(value, types.MethodType):
            return [self.of(value.__self__), value.__name__]
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | np.ufunc):
            return self._name(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        return self._of_object(value)

    def _of_object(self, value: Any) -> Any:
        if id(value) in self.seen:
            return ["seen", self.seen[id(value)]]
        self.seen[id(value)] = len(self.seen)
        if not hasattr(value, "__dict__"):
            raise UnkeptError(f"a {type(value).__name__}")
        own = {name: part for name, part in vars(value).items() if not isinstance(part, threading.local)}
        return [self._name(type(value)), self.of(own)]

    def _name(self, value: Any) -> str:
        """The name of a class or function, in a module or a package whose version tells what it does."""
        module = getattr(value, "__module__", None) or type(value).__module__
        name = getattr(value, "__qualname__", value.__name__)
        if "<" in name or module == "__main__":
            raise UnkeptError(f"{name}, whose code nobody else can find")
        self.modules.add(module)
        return f"{module}.{name}"

    def code(self) -> list[Any]:
        """Versions, and hashes of the files that are in no package of `PACKAGES`."""
        versions = []
        for package in PACKAGES:
            with suppress(PackageNotFoundError):
                versions.append(f"{package} {version(package)}")
        files = set(CODE)
        for module in self.modules:
            if module.partition(".")[0] not in (*PACKAGES, *sys.stdlib_module_names):
                with suppress(TypeError, OSError):
                    files.add(Path(inspect.getfile(sys.modules[module])))
        return [sys.version, versions, sorted(map(sha256, files))]


def _encoded(held: HeldCase) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a case, and the rest of it as JSON that names them."""
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()

    def put(tensor: torch.Tensor) -> str:
        name = str(len(tensors))
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise UnkeptError(f"a tensor on {tensor.device}")
        tensor = tensor.detach().contiguous()
        if (storage := tensor.untyped_storage().data_ptr()) in storages or storage == 0:
            tensor = tensor.clone()
        storages.add(storage)
        tensors[name] = tensor
        return name

    def encode(value: Any) -> Any:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, MetaTensor):
            if value.pending_operations or value.is_batch:
                raise UnkeptError("a tensor with pending operations")
            about = [put(value.as_tensor()), encode(dict(value.meta)), encode(value.applied_operations)]
            return {"meta_tensor": about}
        if isinstance(value, torch.Tensor):
            return {"tensor": put(value)}
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind not in "biuf":
                raise UnkeptError(f"an array of {value.dtype}")
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return {kind: put(torch.from_numpy(np.array(value, value.dtype.newbyteorder("="))))}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if type(value) in (list, tuple):
            return {type(value).__name__: [encode(part) for part in value]}
        if isinstance(value, Mapping):
            # a transform is known by its place in its process, and by its name in any other
            traced = TraceKeys.ID in value and TraceKeys.CLASS_NAME in value
            known = {**value, TraceKeys.ID: TraceKeys.NONE} if traced else value
            return {"dict": [[encode(key), encode(part)] for key, part in known.items()]}
        raise UnkeptError(f"a {type(value).__name__}")

    dtypes = {key: str(dtype).removeprefix("torch.") for key, dtype in held.dtypes.items()}
    return tensors, json.dumps([encode(held.item), encode(dtypes)])


def _from_file(file: Path) -> HeldCase:
    """Read what `_encoded` gave; an error of any kind where it is not that."""
    with safe_open(file, "pt") as opened:
        described = json.loads(opened.metadata()["case"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 no mapping

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, part),) = value.items()
        if kind == "meta_tensor":
            name, meta, operations = part
            return MetaTensor(tensors[name], meta=decode(meta), applied_operations=decode(operations))
        if kind == "dict":
            return {decode(key): decode(inner) for key, inner in part}
        if kind in ("list", "tuple"):
            inside = [decode(inner) for inner in part]
            return inside if kind == "list" else tuple(inside)
        if kind == "tensor":
            return tensors[part]
        array = tensors[part].numpy().copy()
        return array if kind == "array" else array[()]

    item, dtypes = map(decode, described)
    return HeldCase(item, {key: getattr(torch, name) for key, name in dtypes.items()}, mapped=True)
