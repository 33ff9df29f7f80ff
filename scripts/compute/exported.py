"""Networks in the files that `python -m bundle export` writes, each computed by the runtime of its format."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from scripts.compute.quantised import check_pair, is_quantised
from scripts.compute.runtimes import Predict, narrows, onnxruntime_session, openvino_core, openvino_model
from scripts.errors import InputError
from scripts.files import is_as_written
from scripts.networks.sizes import Sizes


class Exported(nn.Module):
    """A network in a file, for inference and evaluation, see `configs/exported.json`.

    To an inferer it is the network that was exported. Nothing of it is computed by that network, which only
    tells what sizes are legal.

    Args:
        path: its suffix names the runtime: `.pt2` (torch.export) and `.ts` (TorchScript, TensorRT in it),
            computed by PyTorch; `.onnx`, by ONNX Runtime on the CPU; `.xml` with its `.bin`, by OpenVINO on
            the CPU.
        network: the network that was exported; its weights are not read.
        device: where PyTorch computes.
        precision: "exact", or "fast", without which an int8 file is refused.

    Raises:
        InputError: no such file, another suffix, a runtime that is not installed, a file that it refuses, or
            one in int8 where the user wants it exact.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        device: torch.device | str = "cpu",
        precision: str = "exact",
    ) -> None:
        super().__init__()
        file = Path(path)
        if file.suffix not in _LOADERS:
            raise InputError(f"checkpoint is {path}: an exported network ends in {', '.join(_LOADERS)}")
        if not file.is_file():
            raise InputError(f"checkpoint is {path}, which is not there: run python -m bundle export first")
        package, load = _LOADERS[file.suffix]
        if not find_spec(package):
            raise InputError(
                f"checkpoint is {path}, for which {package} is not installed: "
                "run pip install -r requirements-runtimes.txt"
            )
        self.prototype = network.eval()
        self.sizes = Sizes(network)
        self.device = torch.device(device)
        self.rounded = False
        self._wide: set[tuple[int, ...]] = set()
        try:
            if file.suffix == ".xml" and is_quantised(model := openvino_core().read_model(path)):
                if precision == "exact":
                    raise InputError(
                        f"checkpoint is {path}, a network in int8, and precision is 'exact': set precision "
                        "to 'fast', or name the exact file"
                    )
                check_pair(model, file)
                self.rounded = True
            if not is_as_written(beside := file.with_suffix(".bin")):
                raise InputError(
                    f"{beside} is not what was written with {file.name}, by its SHA-256 in metadata.json: "
                    "export it again"
                )
            self._predict = load(path, self.device)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"checkpoint is {path}, which {package} cannot read ({type(error).__name__}): export it again"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits.

        Args:
            x: (B, C, *spatial), float32.

        Returns:
            (B, classes, *spatial), float32, on the device of ``x``.

        Raises:
            InputError: a size that is illegal for the network.
        """
        self.sizes.check(x.shape[2:])
        if self.rounded:
            self._require_wide(tuple(x.shape))
        image = x.as_tensor() if isinstance(x, MetaTensor) else x
        with torch.no_grad():
            return self._predict(image).to(x.device)

    def _require_wide(self, size: tuple[int, ...]) -> None:
        """Refuse a size of tiles at which int8 is not to be relied on; each is looked at once."""
        if size not in self._wide and narrows(self.prototype, size):
            raise InputError(
                f"a level of the network has one voxel along the last axis of tiles of {list(size[2:])}, "
                "where int8 is not to be relied on with AMX: take larger tiles, or the exact file"
            )
        self._wide.add(size)


def _torch_export(path: str, device: torch.device) -> Predict:
    program = torch.export.load(path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()
    return lambda x: module(x.to(device))


def _torchscript(path: str, device: torch.device) -> Predict:
    if device.type == "cuda" and find_spec("torch_tensorrt"):
        import torch_tensorrt  # noqa: F401  # registers the operator of a TensorRT engine
    module = torch.jit.load(path, map_location=device).eval()
    return lambda x: module(x.to(device))


def _onnx(path: str, device: torch.device) -> Predict:
    predict = onnxruntime_session(path)
    return lambda x: predict(x.cpu())


def _openvino(path: str, device: torch.device) -> Predict:
    openvino_core().read_model(path)  # what is no model is told now

    @cache
    def compiled(size: tuple[int, ...]) -> Predict:
        """For one size: a graph for any size computes more slowly, above all in int8."""
        model = openvino_core().read_model(path)
        model.reshape(list(size))
        return openvino_model(model)

    return lambda x: compiled(tuple(x.shape))(x.cpu())


_LOADERS: dict[str, tuple[str, Callable[[str, torch.device], Predict]]] = {
    ".pt2": ("torch", _torch_export),
    ".ts": ("torch", _torchscript),
    ".onnx": ("onnxruntime", _onnx),
    ".xml": ("openvino", _openvino),
}
