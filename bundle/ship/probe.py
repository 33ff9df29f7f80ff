"""What `python -m bundle verify` runs in a process of its own: a network, with the scripts of its bundle.

It imports nothing of ours, as the package `scripts` of the bundle at hand takes that name.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

SEED = 0


def probe(root: Path, size: list[int]) -> dict[str, Any]:
    """Build the network of inference.json, load its weights, and predict a random image twice.

    Args:
        root: folder of the bundle.
        size: (B, C, *spatial) of the image.

    Returns:
        "shape" of the output, whether it was "equal" twice, and whether the network takes "dropout".
    """
    sys.path.insert(0, str(root))
    parser = ConfigParser()
    parser.read_config(next(file for file in sorted((root / "configs").glob("inference.*"))))
    parser["bundle_root"] = str(root)
    definition = parser["network_def"]
    network = parser.get_parsed_content("network_def")
    state = torch.load(root / "models" / "model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    network.eval()
    image = torch.rand(size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        first, second = network(image), network(image)
    takes_dropout = "dropout" in inspect.signature(type(network)).parameters
    return {
        "shape": list(first.shape),
        "equal": bool(torch.equal(first, second)),
        "dropout": isinstance(definition, dict) and takes_dropout,
    }


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), json.loads(sys.argv[2]))))
