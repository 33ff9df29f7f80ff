"""`python -m MODULE ARGUMENTS` in a fork of a process that has imported MONAI, from another folder.

    tests.forked FOLDER STDOUT STDERR MODULE ARGUMENTS

is what such a fork runs, see `tests.commands.command`. What it says goes into the two files. Nothing of this
repository is imported before, as in a process of its own.
"""

from __future__ import annotations

import os
import runpy
import sys

import monai.bundle
import monai.handlers  # noqa: F401
import torch

#: Packages of this repository.
OURS = ("scripts", "bundle", "tests")


def main(folder: str, out: str, err: str, module: str, *arguments: str) -> None:
    """Become that command."""
    os.chdir(folder)
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[0] = folder
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
