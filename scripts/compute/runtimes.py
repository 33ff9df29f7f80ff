"""What computes a network's forward pass: PyTorch, or a library that the network is converted for."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scripts.compute.acceleration import can_compile, has_amx, mixed_precision, strides_to_one, unwrap
from scripts.compute.kept import compile_kept
from scripts.compute.memory import forward_bytes, resident_bytes
from scripts.compute.quantised import multiplies_int8, read_int8
from scripts.errors import InputError
from scripts.networks.heads import main_logits

logger = logging.getLogger(__name__)

# By this package OpenVINO and nncf report over the internet that they were used; both do without it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

RUNTIMES = ("torch", "compile", "onnxruntime", "openvino", "auto")

#: Runtimes that are packages of their own, from requirements-runtimes.txt.
OPTIONAL = ("onnxruntime", "openvino")

#: "auto" takes a runtime which, on tiles with foreground, agrees with float32 PyTorch on every class that
#: either of them finds: a Dice of at least this between the voxels that the two give to the class,
SAME_CLASS = 0.95

#: and on these voxels probabilities of the class that lie on average at most this far apart.
MEAN_DIFFERENCE = 0.01

#: It is judged on tiles until they have shown every class, but on no more tiles with foreground than this.
JUDGED_TILES = 4

#: Peak of a forward pass over what its tensors need (scripts.compute.memory.forward_bytes), what a runtime's
#: code needs whatever the network, and how many copies of the weights a conversion makes. Upper bounds of
#: what networks of 2 to 17 million weights took on tiles of 48 to 128 voxels.
PEAK_FACTOR = 1.25
CODE_BYTES = {
    "torch": 100_000_000,
    "compile": 500_000_000,
    "onnxruntime": 300_000_000,
    "openvino": 250_000_000,
    "auto": 300_000_000,
}
WEIGHT_COPIES = 3

#: Voxels of a tile up to which threads compute one each rather than one together.
SMALL_TILE = 64**3

#: Layers of OpenVINO by which attention is known.
ATTENTION = ("Softmax", "ScaledDotProductAttention")

#: Bytes that the system's `stack_t` takes at most.
STACK_T = 64

Predict = Callable[[Tensor], Tensor]
Choice = tuple[str, torch.dtype | None]  # a runtime, or "int8", and its type of mixed precision


class Runtime:
    """Calls a network by way of a runtime; converts it at the first tile of a size and when weights change.

    A conversion holds for one tile size. A network in training mode, one that is no module and one that is
    called with further arguments is left to PyTorch.

    Args:
        runtime: "torch"; "compile", PyTorch compiled for a minute or more; "openvino" and "onnxruntime",
            which compute on the CPU; or "auto": on a GPU PyTorch, on the CPU the fastest of OpenVINO and
            PyTorch, with mixed precision and without, that agrees with PyTorch in float32, class by class, on
            the first tiles with foreground (see `SAME_CLASS`, `MEAN_DIFFERENCE` and `JUDGED_TILES`). Until
            then PyTorch computes in float32.
        amp: mixed precision where the hardware has it; ONNX Runtime stays with float32.
        quantised: an int8 file of the network (`scripts.compute.quantised.for_precision`), which "auto" tries
            first and judges as it does the others; None for none.

    Attributes:
        reserved: bytes by which the process grew when the network was converted.

    Raises:
        InputError: an unknown runtime, or one that is not installed.
    """

    def __init__(self, runtime: str = "torch", amp: bool = False, quantised: Path | None = None) -> None:
        if runtime not in RUNTIMES:
            raise InputError(f"runtime is {runtime!r}: use {', '.join(map(repr, RUNTIMES))}")
        if runtime in OPTIONAL and not find_spec(runtime):
            raise InputError(
                f"runtime is {runtime!r}, which is not installed: "
                "run pip install -r requirements-runtimes.txt, or use 'auto'"
            )
        if quantised is not None and runtime != "auto":
            logger.warning(
                "precision 'fast' is for runtime 'auto', and runtime is %r: going on exactly", runtime
            )
        self.runtime = runtime
        self.amp = amp
        self.quantised = quantised
        self.reserved = 0
        self._network: nn.Module | None = None
        self._weights: tuple = ()
        self._parts: list[tuple[nn.Module, tuple[nn.Module | None, ...]]] = []  # listed once: that takes long
        self._choice: Choice | None = None
        self._converted: dict[tuple[int, ...], Predict] = {}
        self._candidates: list[Choice] | None = None
        self._shown: list[set[int]] = []  # classes of the tiles on which the first candidate was judged
        self._said: set[str] = set()

    def __call__(self, network: Callable[..., Any], tile: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the logits of some tiles, without gradients.

        Args:
            network: takes (B, C, *spatial), gives what `scripts.networks.heads.main_logits` reads.
            tile: (B, C, *spatial), float32.
            *args: further positional arguments of the network.
            **kwargs: further keyword arguments of the network.

        Returns:
            (B, classes, *spatial), float32, on the tile's device.

        Raises:
            InputError: a runtime that computes on the CPU is asked for a network on a GPU.
        """
        with torch.no_grad():
            if (
                self.runtime == "torch"
                or not isinstance(network, nn.Module)
                or network.training
                or args
                or kwargs
            ):
                return _run_torch(network, self._precision(tile.device), tile, *args, **kwargs)
            self._follow(network)
            if self._choice is not None and (key := _key(self._choice, tile)) in self._converted:
                return self._converted[key](tile)
            before = resident_bytes()
            if self._choice is None and self.runtime == "auto" and tile.device.type == "cpu":
                logits = self._judge(network, tile)
            else:
                self._choice = self._choice or self._choose(tile.device)
                logits = self._convert(network, tile, self._choice)(tile)
            if self._converted:
                self.reserved += max(resident_bytes() - before - logits.nbytes, 0)
            return logits

    def abreast(self, network: Callable[..., Any], tile: Sequence[int], count: int) -> int:
        """How many of the tiles of an image are computed faster together, each by a thread of its own.

        Two threads are little faster than one on a small tile; OpenVINO computes two of them in the time.

        Args:
            network: see `__call__`.
            tile: voxels, (*spatial).
            count: tiles that can be computed together.

        Returns:
            1 where there is nothing to gain.
        """
        threads = torch.get_num_threads()
        on_cpu = isinstance(network, nn.Module) and all(p.device.type == "cpu" for p in network.parameters())
        if self.runtime not in ("openvino", "auto") or not find_spec("openvino") or not on_cpu:
            return 1
        return min(threads, count) if math.prod(tile) <= SMALL_TILE and 2 * count > threads else 1

    def look(self, network: Callable[..., Any], tiles: Iterable[Tensor]) -> None:
        """Let "auto" choose by tiles that are likely to show foreground.

        Args:
            network: see `__call__`.
            tiles: see `__call__`; no more of them are taken than the choice needs.
        """
        if self.runtime == "auto" and isinstance(network, nn.Module) and not network.training:
            self._follow(network)
            remaining = iter(tiles)
            while self._choice is None and (tile := next(remaining, None)) is not None:
                self(network, tile)

    def peak_bytes(self, network: nn.Module, size: Sequence[int]) -> tuple[int, int]:
        """What the process needs at most, beside what it holds, to compute the logits of some tiles.

        Args:
            network: see `__call__`.
            size: (B, C, *spatial) of the tiles.

        Returns:
            Bytes, and the classes of the logits.
        """
        if self.runtime == "torch":
            count, classes = forward_bytes(network, size, self._precision(torch.device("cpu")))
        else:  # conversions start from float32, and "auto" judges by it
            count, classes = forward_bytes(unwrap(network), size)
        need = PEAK_FACTOR * count + CODE_BYTES[self.runtime]
        if self.runtime not in ("torch", "compile"):
            need += WEIGHT_COPIES * sum(weight.nbytes for weight in network.parameters())
        return int(need), classes

    def _follow(self, network: nn.Module) -> None:
        """Forget the conversions of another network or of other weights."""
        if network is not self._network or any(map(_has_other_parts, self._parts)):
            self._parts = [(module, tuple(module._modules.values())) for module in network.modules()]
        tensors = chain.from_iterable(
            (*module._parameters.values(), *module._buffers.values()) for module, _ in self._parts
        )
        # a compiled network reads its weights where they lie
        weights = (
            ()
            if self.runtime == "compile"
            else tuple((t.data_ptr(), t._version) for t in tensors if t is not None)
        )
        if network is not self._network or weights != self._weights:
            self._network, self._weights = network, weights
            self._choice = self._candidates = None
            self._converted.clear()
            self._shown.clear()
            self.reserved = 0

    @property
    def taken(self) -> str:
        """What "auto" took, such as "openvino in int8"; empty until it has, and for other runtimes."""
        return _describe(self._choice) if self.runtime == "auto" and self._choice else ""

    @property
    def is_settled(self) -> bool:
        """Whether it is known what computes; "auto" looks at some tiles first."""
        return self.runtime != "auto" or self._choice is not None

    def _choose(self, device: torch.device) -> Choice:
        """The runtime to convert for, and its type of mixed precision or None."""
        mixed = self._precision(device)
        if self.runtime == "auto":
            if self.quantised is not None:
                self._say("precision 'fast' is for the CPU: going on with torch on the GPU")
            return "torch", mixed
        if self.runtime in OPTIONAL and device.type != "cpu":
            raise InputError(
                f"runtime is {self.runtime!r}, which computes on the CPU, and the network lies on "
                f"{device}: use 'torch', 'compile' or 'auto'"
            )
        if self.runtime == "compile" and not can_compile(device):
            self._say("runtime: no compiler was found; going on with torch")
            return "torch", mixed
        return self.runtime, mixed

    def _judge(self, network: nn.Module, tile: Tensor) -> Tensor:
        """PyTorch's logits in float32, by which the candidates, from fast to slow, are judged."""
        reference = _float32(network, tile, None)(tile)
        if self._candidates is None:
            self._candidates = self._list_candidates(network, self._precision(tile.device))
        shown = set(reference.argmax(1).unique().tolist())
        if not shown - {0}:
            self._say("runtime auto: torch in float32 until a tile shows foreground to judge the others by")
            return reference
        while self._candidates:
            agrees, judged = self._compare(network, tile, self._candidates[0], reference)
            called = _describe(self._candidates[0])
            if agrees:
                self._shown.append(shown)
                if len(set.union(*self._shown)) == reference.shape[1] or len(self._shown) == JUDGED_TILES:
                    self._choice = self._candidates[0]
                    self._say(f"runtime auto: took {called} ({judged})")
                return reference
            logger.warning("runtime auto: left out %s (%s)", called, judged)
            self._candidates.pop(0)
            self._converted.clear()
            self._shown.clear()
        self._choice = "float32", None
        self._say("runtime auto: took torch in float32 (nothing faster is installed and agrees with it)")
        return reference

    def _list_candidates(self, network: nn.Module, mixed: torch.dtype | None) -> list[Choice]:
        candidates: list[Choice] = [("openvino", mixed), ("torch", mixed)] if mixed else []
        candidates.append(("openvino", None))
        if not find_spec("openvino"):
            self._say("runtime auto: openvino is not installed, see requirements-runtimes.txt")
            return [choice for choice in candidates if find_spec(choice[0])]
        if self.quantised is not None and (reason := _unfit(self.quantised, network)):
            logger.warning("runtime auto: left out openvino in int8 (%s)", reason)
        elif self.quantised is not None:
            candidates.insert(0, ("int8", None))
        return candidates

    def _compare(
        self, network: nn.Module, tile: Tensor, choice: Choice, reference: Tensor
    ) -> tuple[bool, str]:
        """Whether a candidate agrees with the logits of a tile, and by how much."""
        try:
            found = agreement(self._convert(network, tile, choice)(tile), reference)
        except Exception as error:
            return False, f"which failed: {error}"
        worst, same = min(((label, dice) for label, (dice, _) in found.items()), key=lambda pair: pair[1])
        apart = max(apart for _, apart in found.values())
        judged = f"Dice with float32 from {same:.4f}, of class {worst}, up; probabilities {apart:.1e} apart"
        return same >= SAME_CLASS and apart <= MEAN_DIFFERENCE, judged

    def _convert(self, network: nn.Module, tile: Tensor, choice: Choice) -> Predict:
        """The network in a runtime, converted at the first tile of a size."""
        key = _key(choice, tile)
        if key not in self._converted:
            name, dtype = choice
            if name not in ("torch", "float32"):
                logger.info("runtime: preparing %s for tiles of %s", _describe(choice), list(tile.shape))
            rounded = name == "int8" or (name == "openvino" and dtype is not None)
            if rounded and narrows(network, tile.shape):
                logger.info("runtime: a level of such tiles has one voxel along an axis: in float32")
                name, dtype = "openvino", None
            convert = partial(_int8, cast(Path, self.quantised)) if name == "int8" else _CONVERTERS[name]
            self._converted[key] = convert(network, tile, dtype)
        return self._converted[key]

    def _precision(self, device: torch.device) -> torch.dtype | None:
        dtype = mixed_precision(device) if self.amp else None
        if self.amp and dtype is None:
            self._say("amp: this processor has no half precision in hardware; going on in float32")
        return dtype

    def _say(self, message: str) -> None:
        """Log a message unless it was logged before."""
        if message not in self._said:
            self._said.add(message)
            logger.info(message)


def agreement(logits: Tensor, reference: Tensor) -> dict[int, tuple[float, float]]:
    """How well logits agree with a reference, class by class: a small class counts as much as a large one.

    Args:
        logits: (B, classes, *spatial).
        reference: of the same shape.

    Returns:
        For each class that is the most probable one somewhere, in one of the two: the Dice of the voxels
        where it is that, and the mean absolute difference of its probability over the voxels of both.
    """
    ours, theirs = logits.argmax(1), reference.argmax(1)
    apart = (logits.softmax(1) - reference.softmax(1)).abs()
    found = {}
    for label in torch.cat([ours.unique(), theirs.unique()]).unique().tolist():
        mine, its = ours == label, theirs == label
        dice = 2 * (mine & its).sum() / (mine.sum() + its.sum())
        found[label] = float(dice), float(apart[:, label][mine | its].mean())
    return found


def _key(choice: Choice, tile: Tensor) -> tuple[int, ...]:
    """What a conversion holds for: tiles of a size; with OpenVINO one of them, or several at once."""
    batch = min(len(tile), 2) if choice[0] in ("openvino", "int8") else len(tile)
    return (batch, *tile.shape[1:])


def _has_other_parts(listed: tuple[nn.Module, tuple[nn.Module | None, ...]]) -> bool:
    module, parts = listed
    return tuple(module._modules.values()) != parts


def _describe(choice: Choice) -> str:
    name, dtype = choice
    if name == "int8":
        return "openvino in int8"
    return f"{name} in {str(dtype or torch.float32).removeprefix('torch.')}"


def _run_torch(
    network: Callable[..., Any], dtype: torch.dtype | None, tile: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    # float32 leaves an autocast that a caller opened as it is
    with torch.autocast(tile.device.type, dtype) if dtype else nullcontext():
        return main_logits(network(tile, *args, **kwargs)).float()


def _torch(network: nn.Module, tile: Tensor, dtype: torch.dtype | None) -> Predict:
    return lambda x: _run_torch(network, dtype, x)


def _float32(network: nn.Module, tile: Tensor, dtype: torch.dtype | None) -> Predict:
    """PyTorch in float32, whatever precision `accelerate` gave the network."""
    bare = unwrap(network)
    return lambda x: _run_torch(bare, None, x)


def _compile(network: nn.Module, tile: Tensor, dtype: torch.dtype | None) -> Predict:
    compiled = torch.compile(unwrap(network), dynamic=False)
    return lambda x: _run_torch(compiled, dtype, x)


def onnxruntime_session(model: str | bytes) -> Predict:
    """An ONNX model in ONNX Runtime on the CPU, in float32, on as many threads as PyTorch has.

    Args:
        model: path of the file, or its content.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])


def _onnxruntime(network: nn.Module, tile: Tensor, dtype: torch.dtype | None) -> Predict:
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # each rewriting step is told about
        logging.getLogger(name).setLevel(logging.ERROR)
    program = cast(
        "torch.onnx.ONNXProgram", torch.onnx.export(unwrap(network), (tile,), dynamo=True, verbose=False)
    )
    return onnxruntime_session(program.model_proto.SerializeToString())


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the life of the process.

    Its CPU plugin sets aside a stack for signal handlers. Where several are taken down the process is left
    with one that is gone, and the next signal, of a data loader's worker or of Ctrl-C, ends it.
    """
    from openvino import Core

    return Core()


def signal_stack() -> Any:
    """The stack set aside for signal handlers of this thread, as the system's `sigaltstack` tells."""
    told = ctypes.create_string_buffer(STACK_T)
    if os.name == "posix":
        ctypes.CDLL(None).sigaltstack(None, told)
    return told


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Put back the stack for signal handlers after a library had cores of its own, see `openvino_core`."""
    before = signal_stack()
    try:
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).sigaltstack(before, None)


def narrows(network: nn.Module, size: Sequence[int]) -> bool:
    """Whether a stride of a network leaves one voxel along the last axis of a tile, on a processor with AMX.

    There such a map holds memory that nobody wrote, in bfloat16 (as in `scripts.compute.acceleration`) and in
    8 bits.

    Args:
        network: whose layers are looked at.
        size: (B, C, *spatial) of the tile.
    """
    if not has_amx():
        return False
    found: list[bool] = []
    strided = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    handles = [
        module.register_forward_pre_hook(lambda m, inputs: found.append(strides_to_one(m, inputs[0])))
        for module in strided
        if max(module.stride) > 1
    ]
    try:
        if handles:
            forward_bytes(network, size)
    finally:
        for handle in handles:
            handle.remove()
    return any(found)


def _openvino(network: nn.Module, tile: Tensor, dtype: torch.dtype | None) -> Predict:
    # The steps of openvino.convert_model, which checks the trace.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.trace: that it is old, and that sizes become constants
        decoder = TorchScriptPythonDecoder(
            unwrap(network),
            example_input=(tile[:1],),
            shared_memory=True,
            trace_kwargs={"check_trace": False},  # which would compute the network three times more
        )
    model = frontend.convert(frontend.load(decoder))
    model.reshape([1, *tile.shape[1:]])
    return openvino_model(model, dtype, apart=len(tile) > 1)


def _unfit(path: Path, network: nn.Module) -> str:
    """Why an int8 file does not stand for a network on this processor; empty where it does."""
    if not multiplies_int8():
        return "this processor does not multiply whole numbers of 8 bits faster: precision 'fast' is for AVX2"
    try:
        read_int8(path, network)
    except InputError as error:
        return str(error)
    return ""


def _int8(path: Path, network: nn.Module, tile: Tensor, dtype: torch.dtype | None) -> Predict:
    model = read_int8(path, network)
    model.reshape([1, *tile.shape[1:]])
    return openvino_model(model, apart=len(tile) > 1)


def openvino_model(model: Any, dtype: torch.dtype | None = None, apart: bool = False) -> Predict:
    """A model in OpenVINO on the CPU, on as many threads as PyTorch has.

    Args:
        model: path of an .xml or .onnx file, or a model of OpenVINO.
        dtype: type of mixed precision, or None for float32.
        apart: the model takes one tile; of several at once each thread computes its own.
    """
    from openvino import Model

    threads = torch.get_num_threads()
    if not isinstance(model, Model):
        model = openvino_core().read_model(model)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "THROUGHPUT" if apart else "LATENCY",
        "NUM_STREAMS": threads if apart else 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
    }
    if any(layer.get_type_name() in ATTENTION for layer in model.get_ops()):
        settings["SNIPPETS_MODE"] = "DISABLE"  # they fuse attention, and crash in float32 (2026.4)
    compiled = compile_kept(lambda more: openvino_core().compile_model(model, "CPU", {**settings, **more}))
    if not apart:
        return lambda x: torch.from_numpy(compiled(x.contiguous().numpy())[0])
    return _Apart(compiled, threads)


class _Apart:
    """Several tiles at once, each on a thread of its own."""

    def __init__(self, compiled: Any, threads: int) -> None:
        from openvino import AsyncInferQueue

        self.queue = AsyncInferQueue(compiled, threads)
        self.queue.set_callback(self._take)
        self.done: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        for index, tile in enumerate(x.contiguous().numpy()):
            self.queue.start_async([tile[None]], index)
        self.queue.wait_all()
        done, self.done = self.done, {}
        return torch.cat([done[index] for index in range(len(x))])

    def _take(self, request: Any, index: int) -> None:
        self.done[index] = torch.from_numpy(request.get_output_tensor(0).data.copy())


_CONVERTERS: dict[str, Callable[[nn.Module, Tensor, torch.dtype | None], Predict]] = {
    "torch": _torch,
    "float32": _float32,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
