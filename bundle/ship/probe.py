"""What `python -m bundle verify` runs in a process of its own: a network, with the scripts of its bundle.

It imports nothing of ours, as the package `scripts` of the bundle at hand takes that name.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser

SEED = 0


def probe(config: Path, size: list[int], any_length: int) -> dict[str, Any]:
    """Build the network of inference.json, load its weights, predict a random image twice, and export it.

    Args:
        config: inference.json of the bundle, in its folder `configs`.
        size: (B, C, *spatial) of the image.
        any_length: what "*" in the spatial shapes of the metadata stands for.

    Returns:
        "shape" of the output, whether it was "equal" twice, whether the network takes "dropout", and of each
        of MONAI's "commands" what is wrong, which should be nothing.
    """
    root = config.parents[1]
    sys.path.insert(0, str(root))
    parser = ConfigParser()
    parser.read_config(config)
    parser["bundle_root"] = str(root)
    definition = parser["network_def"]
    network = parser.get_parsed_content("network_def")
    weights = root / "models" / "model.pt"
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    network.eval()
    image = torch.rand(size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        first, second = network(image), network(image)
    takes_dropout = "dropout" in inspect.signature(type(network)).parameters
    given = {
        "net_id": "network_def",
        "config_file": str(config),
        "meta_file": str(config.with_name("metadata.json")),
        "bundle_root": str(root),
    }
    problems = {}
    with tempfile.TemporaryDirectory() as elsewhere:
        exported = {"filepath": f"{elsewhere}/model.ts", "ckpt_file": str(weights)}
        for command, options in (("verify_net_in_out", {"any": any_length}), ("ckpt_export", exported)):
            try:
                getattr(monai.bundle, command)(**given, **options)
            except Exception as error:  # every network has its own
                problems[command] = f"{type(error).__name__}: {error}"
    return {
        "shape": list(first.shape),
        "equal": bool(torch.equal(first, second)),
        "dropout": isinstance(definition, dict) and takes_dropout,
        "commands": problems,
    }


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))))
