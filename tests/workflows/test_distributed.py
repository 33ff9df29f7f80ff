"""Two processes with half a batch each train the network that one process with the whole batch trains."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.process import bundle_root
from tests.commands import bundle_run, command, config_files, input_error, run, written

pytestmark = [pytest.mark.workflow, pytest.mark.long]

#: Means over two processes and over one batch add the same floats in another order; plain gradient descent
#: carries the difference along without amplifying it.
WEIGHT_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-3

#: Non-random enough to be compared: crops that stay inside the picture, so that both halves of a batch hold
#: as many annotated pixels, a Dice of each sample, an optimizer that is linear in the gradient, no bf16.
PLAIN: dict[str, Any] = {
    "patch_size": [32, 32],
    "channels": [8, 16],
    "samples_per_case": 4,
    "max_epochs": 4,
    "val_interval": 2,
    "learning_rate": 0.2,
    "amp": False,
    "loss": {"_target_": "scripts.losses.WeightedDiceCELoss", "alpha": "@alpha", "batch": False},
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": "@learning_rate"},
    "augment": [
        {
            "_target_": "RandSpatialCropd",
            "keys": ["image", "label"],
            "roi_size": "@patch_size",
            "random_size": False,
        }
    ],
}


def write_blobs(folder: Path) -> None:
    """Seven noisy pictures of bright discs, four to train on: easy enough to be learnt in a few steps."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:64, :64]
    entries = []
    for index in range(7):
        centres = rng.uniform(12, 52, (3, 2))
        disc = np.any([(rows - y) ** 2 + (columns - x) ** 2 < 10**2 for y, x in centres], axis=0)
        grey = 80 + 90 * disc + rng.normal(0, 20, disc.shape)
        for kind, pixels in (("image", grey.clip(0, 255)), ("label", 255 * disc)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{index}.png")
        entries.append({kind: f"{kind}/{index}.png" for kind in ("image", "label")})
    lists = {"training": entries[:4], "validation": entries[4:]}
    (folder / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")


def last_dice(output: Path) -> float:
    with (output / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, PLAIN["max_epochs"] + 1)]
    return float(rows[-1]["val_mean_dice"])


def names(folder: Path) -> list[str]:
    """Files without the process number and time that TensorBoard puts into its names."""
    return [re.sub(r"tfevents\..*", "tfevents", file) for file in written(folder)]


#: A network in a cycle of references, as the handlers of a training hold it, and the end of the process soon
#: after the last word between processes.
LEAVE = """
import torch
from scripts.process import set_up_distributed

def train():
    set_up_distributed(0)
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    cycle = [network]
    cycle.append(cycle)
    for _ in range(5):
        torch.distributed.all_reduce(torch.ones(300))

train()
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as torchrun gives a process: others add the same floats in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    data, overlay = tmp_path / "blobs", tmp_path / "plain.json"
    write_blobs(data)
    overlay.write_text(json.dumps(PLAIN), encoding="utf-8")
    files = config_files("train", "task/em_membrane", str(overlay))

    where = ("--dataset_dir", str(data), "--output_dir", str(tmp_path / "two"))
    for overlays, options in (
        (["multi_gpu_train"], ["--batch_size", "1"]),
        (["multi_gpu_train", "evaluate"], ["--section", "validation"]),
    ):
        done = command(
            *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *bundle_run(*where, *options, files=[*files, *config_files(*overlays)]),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    run(*files, dataset_dir=str(data), output_dir=str(tmp_path / "one"), batch_size=2)
    places = {"dataset_dir": str(data), "output_dir": str(tmp_path / "one")}
    run(*files, "evaluate", **places, section="validation", checkpoint=str(tmp_path / "two/model.pt"))

    assert last_dice(tmp_path / "one") > 0.3
    assert last_dice(tmp_path / "two") == pytest.approx(last_dice(tmp_path / "one"), abs=SCORE_TOLERANCE)
    one, two = (torch.load(tmp_path / which / "model.pt", weights_only=True) for which in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, atol=WEIGHT_TOLERANCE, rtol=0, msg=name)
    last = torch.load(tmp_path / "two/checkpoints/last.pt", weights_only=True)
    assert last["training"]["number of processes"] == "2"
    assert names(tmp_path / "two") == names(tmp_path / "one")  # one process writes
    for name in ("scores.csv", "summary.json"):  # of three cases, two and one for each process
        texts = [(tmp_path / which / "evaluation" / name).read_text() for which in ("one", "two")]
        assert texts[0] == texts[1]


@pytest.mark.usefixtures("one_thread")
def test_two_processes_measure_together(tmp_path: Path) -> None:
    """None waits for the other for ever, and both refuse what the first finds too short."""
    data, overlay = tmp_path / "blobs", tmp_path / "plain.json"
    write_blobs(data)
    overlay.write_text(json.dumps(PLAIN), encoding="utf-8")
    files = config_files("train", "task/em_membrane", str(overlay), "multi_gpu_train")
    where = ("--dataset_dir", str(data), "--output_dir", str(tmp_path / "two"), "--minutes", "0.01")
    done = command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *bundle_run(*where, files=files),
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: minutes is 0.01, and here the start takes") == 2
    assert not (tmp_path / "two" / "length.json").exists()


def test_processes_end_without_being_aborted(tmp_path: Path) -> None:
    script = tmp_path / "leave.py"
    script.write_text(f"import sys\nsys.path.insert(0, {bundle_root()!r})\n{LEAVE}", encoding="utf-8")
    done = command(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_without_torchrun_one_sentence_says_so(organ: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        run("train", "multi_gpu_train", dataset_dir=str(organ), output_dir=str(tmp_path / "out"))
    assert input_error(caught.value).startswith("multi_gpu_train.json needs several processes")
    assert not (tmp_path / "out").exists()
