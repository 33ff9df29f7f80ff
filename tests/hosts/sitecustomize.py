"""Let a torchvision built for CUDA be imported beside a PyTorch built for the CPU.

MONAI Label imports torchvision, of which it needs no compiled operator. The torchvision of the package index
is built for CUDA; beside a PyTorch for the CPU its own operators are missing, and its import fails where it
describes two of them. This file is copied into the site-packages of the server's environment, where every
process of the server reads it, and declares the two by name.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import version
from typing import Any


class _Declare(MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and finds no module itself."""

    declared: Any = None

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Called for every import."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            from torch import library
            from torch.version import cuda

            if cuda is None and not version("torchvision").endswith("+cpu"):
                _Declare.declared = library.Library("torchvision", "FRAGMENT")
                for name in ("nms", "qnms"):
                    _Declare.declared.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")


sys.meta_path.insert(0, _Declare())
