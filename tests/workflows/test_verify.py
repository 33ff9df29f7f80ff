"""`python -m bundle verify`: a sound bundle passes, each fault is found and named."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bundle.ship.verify
from bundle.runs.study import read_scores
from bundle.ship.audit import executed
from bundle.ship.verify import (
    READING,
    RUNNING,
    Bundle,
    check_files,
    check_inference,
    check_network,
    check_weights,
    read_bundle,
    unpack,
)
from scripts.errors import InputError
from scripts.files import sha256
from scripts.networks import UNet
from tests.commands import CONFIGS, invoke, workbench

pytestmark = pytest.mark.workflow


def verify(path: Path, *options: str) -> tuple[str, str]:
    """What the command prints, and its error."""
    result = invoke("verify", path, *options)
    return result.output, str(result.exception or "")


@pytest.fixture
def copy(packaged: Path, tmp_path: Path) -> Path:
    """A bundle to be spoilt."""
    return shutil.copytree(packaged, tmp_path / "bundle")


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_sound_bundle_passes(packaged: Path) -> None:
    output, error = verify(packaged.with_suffix(".zip"))
    assert [line.split()[0] for line in output.splitlines()] == ["ok"] * len(READING | RUNNING), output
    assert not error


def test_our_own_root_passes() -> None:
    output, error = verify(CONFIGS.parent)
    assert not error, output


@pytest.mark.parametrize(
    ("name", "weights", "card"),
    [
        ("hippocampus", "models", "docs/README.md"),
        ("nuclei", "models/nuclei", "models/nuclei/README.md"),
    ],
)
def test_our_weights_are_those_of_the_card_and_packaged(
    name: str, weights: str, card: str, tmp_path: Path
) -> None:
    root = CONFIGS.parent
    files = {
        "args_file": CONFIGS / f"experiments/{name}.json",
        "checkpoint": root / weights / "model.pt",
        "scores": root / weights / "summary.json",
    }
    options = [part for key, value in files.items() for part in (f"--{key}", value)]
    assert "Wrote" in workbench("package", *options, "--output_dir", tmp_path)
    (made,) = tmp_path.glob("*.zip")
    readme = (made.with_suffix("") / "docs/README.md").read_text(encoding="utf-8")
    for text in (readme, (root / card).read_text(encoding="utf-8")):
        assert sha256(files["checkpoint"]) in text
    assert all(
        f"| {score} | {value:.4f} |" in readme for score, value in read_scores(files["scores"]).items()
    )
    output, error = verify(made)
    assert not error, output


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "inference.json",
            {"evaluator": {"_target_": "os.system"}},
            "inference.json evaluator would execute os",
        ),
        (
            "train.json",
            {"seed": "$open('x').read()"},
            "train.json seed would execute $open('x').read(): uses open",
        ),
        (
            "train.json",
            {"load": [{"_target_": "torch.load", "f": "x"}]},
            "train.json load::0 would execute torch",
        ),
        ("inference.json", {"output_dir": "/home/me"}, "inference.json holds the path /home/me, outside"),
        ("inference.json", {"output_dir": "../there"}, "inference.json holds the path ../there, outside"),
        ("inference.json", {"postprocessing": []}, "postprocessing is no Compose"),
        ("inference.json", {"network_def": "$torch.nn.Identity()"}, "network_def has no _target_"),
        ("metadata.json", {"version": "9.9.9"}, "version '9.9.9' is not in changelog"),
        ("metadata.json", {"authors": 3}, "metadata.json authors: 3 is not of type 'string'"),
    ],
)
def test_fault_in_a_config_is_named(copy: Path, file: str, change: dict[str, Any], message: str) -> None:
    edit(copy / "configs" / file, lambda content: content.update(change))
    output, error = verify(copy)
    assert message in output
    assert "problem(s) found" in error
    assert "not run  network" in output


def test_ids_and_channels_that_hosts_need(copy: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        del content["train"]["trainer"]["max_epochs"]
        del content["network"]  # MONAI Label loads the weights that it serves into it
        content["validate"]["handlers"] = ["@other"]

    edit(copy / "configs/train.json", spoil)
    edit(
        copy / "configs/metadata.json",
        lambda content: content["network_data_format"]["outputs"]["pred"].update(num_channels=2),
    )
    output, _ = verify(copy)
    assert "configs/train.json has no train::trainer::max_epochs, which hosts override or read" in output
    assert "configs/train.json has no network, which hosts override or read" in output
    assert "configs/train.json validate::handlers is no list of dictionaries" in output
    assert "metadata.json outputs::pred: 2 channels, 3 in channel_def" in output


def test_what_would_be_executed_is_shown(copy: Path) -> None:
    edit(copy / "configs/inference.json", lambda content: content.update(seed="$eval('1')"))
    output, _ = verify(copy, "--show")
    assert "  inference.json network_def: scripts.networks.UNet\n" in output
    assert "  inference.json seed: $eval('1')  <- uses eval\n" in output


@pytest.mark.parametrize(
    "text",
    [
        *("$__import__('os').system('x')", "$().__class__.__bases__", "$import os", "$from os import path"),
        *("$torch.load('x')", "$torch.hub.load('a', 'b')", "$monai.bundle.load('x')", "$scripts._secret()"),
        *(
            "$open('x')",
            "$exec('1')",
            "$getattr(torch, 'load')",
            "$lambda: os.remove('x')",
            "$1 +",
            "$np.load('x')",
        ),
    ],
)
def test_expressions_that_are_refused(text: str) -> None:
    (found,) = executed({"a.json": {"b": ["x", text]}})
    assert found.place == "a.json b::1"
    assert found.problem


@pytest.mark.parametrize(
    "text",
    [
        *(
            "$import torch",
            "$@a::b + [@c]",
            "$[x for x in range(@n)]",
            "$lambda output: output['loss'].item()",
        ),
        *("$torch.device('cuda' if torch.cuda.is_available() else 'cpu')", "$not @save", "$len(@labels)"),
        "$monai.handlers.from_engine(['pred', 'label'])",
    ],
)
def test_expressions_that_are_allowed(text: str) -> None:
    (found,) = executed({"a.json": text})
    assert found.problem == ""


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        *(("os.system", "os is not among"), ("builtins.eval", "builtins is not among"), ("LoadImaged", "")),
        *(("NoSuchTransformd", "MONAI knows no such component"), ("torch.jit.load", "reads code or data")),
        *(
            ("torch.nn.Conv2d", ""),
            ("scripts.networks.UNet", ""),
            ("scripts.networks._hidden", "a private name"),
        ),
        *(("torch.os.system", "os is os, which torch imports"), ("run_cmd", "monai.utils is not among")),
        *(("monai.data.utils.os.system", "is os, which monai imports"), ("torch.nn.none", "no such part")),
        *(
            ("torch.serialization.load", "reads code or data"),
            ("monai.bundle.run", "monai.bundle is not among"),
        ),
    ],
)
def test_targets(target: str, problem: str) -> None:
    (found,) = executed({"a.json": {"_target_": target}})
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)


class Payload:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_weights_that_run_code_are_found_and_not_run(copy: Path) -> None:
    torch.save({"a": Payload()}, copy / "models/model.pt")
    (copy / "models/list.pkl").write_bytes(pickle.dumps([1]))
    sentences = list(check_weights(read_bundle(copy)))
    assert any("models/list.pkl holds Python objects" in sentence for sentence in sentences)
    assert any("models/model.pt holds more than weights" in sentence for sentence in sentences)
    assert len(sentences) == 2


def test_hash_of_large_files(copy: Path) -> None:
    entry = {"path": "models/model.pt", "url": "https://example.org", "hash_type": "sha256"}
    file = copy / "models/model.pt"
    for digest, count in ((sha256(file), 0), ("0" * 64, 1)):
        content = {"large_files": [{**entry, "hash_val": digest}]}
        (copy / "large_files.json").write_text(json.dumps(content))
        assert len(list(check_weights(read_bundle(copy)))) == count


def test_files(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "models/model.pt").rename(copy / "models/other.pt")
    shutil.copy(copy / "models/other.pt", copy / "models/a.pt")
    (copy / "LICENSE").unlink()
    (copy / "docs/link.txt").symlink_to(tmp_path)
    monkeypatch.setattr(bundle.ship.verify, "LARGE_FILE", 60_000)
    (copy / "docs/large.bin").write_bytes(bytes(70_000))
    sentences = "\n".join(check_files(read_bundle(copy)))
    for message in (
        "LICENSE is missing",
        "models/model.pt is missing",
        "models holds a.pt, other.pt",
        "docs/link.txt is a link to",
        "docs/large.bin has 0 MB, above 25: name it in large_files.yml",
    ):
        assert message in sentences


def test_weights_of_another_network(copy: Path) -> None:
    torch.save(
        UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(4, 8)).state_dict(),
        copy / "models/model.pt",
    )
    (sentence,) = check_network(read_bundle(copy))
    assert sentence.startswith("the network of configs/inference.json does not run on [1, 1, 16, 16]: ")


def test_network_that_takes_too_long(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.ship.verify, "TIMEOUT", 0.01)
    (sentence,) = check_network(read_bundle(packaged))
    assert sentence.endswith("does not run on [1, 1, 16, 16]: it was stopped after 0.01 seconds")


def test_network_that_guesses_and_has_another_size(copy: Path) -> None:
    (copy / "scripts/noisy.py").write_text(
        "import torch\n"
        "class Noisy(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x[..., :-1] + torch.rand(1)\n"
    )
    edit(
        copy / "configs/inference.json",
        lambda content: content.update(network_def={"_target_": "scripts.noisy.Noisy"}),
    )
    torch.save({}, copy / "models/model.pt")
    size, twice, dropout = check_network(read_bundle(copy))
    assert size.startswith(
        "the network gives [1, 1, 16, 15] for [1, 1, 16, 16], metadata.json says [1, 3, 16, 16]"
    )
    assert twice.startswith("the network gives two results for one image")
    assert dropout.startswith("the network takes no dropout")


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/outside.txt", "a/../../outside.txt", "..\\outside.txt"]
)
def test_zip_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("bundle/configs/metadata.json", "{}")
        archive.writestr(name, "x")
    (tmp_path / "into").mkdir()
    with pytest.raises(InputError, match=r"outside\.txt, which leads out of the zip"):
        unpack(tmp_path / "bad.zip", tmp_path / "into")
    assert not list((tmp_path / "into").iterdir())


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("x")
    assert "neither a folder nor a zip" in verify(tmp_path / "text.zip")[1]
    assert "has no configs/metadata.json" in verify(tmp_path)[1]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/metadata.json").write_text("{}")
    (tmp_path / "configs/inference.json").write_text("{")
    assert "inference.json cannot be read" in verify(tmp_path)[1]


def test_bundle_of_somebody_else_in_yaml(tmp_path: Path) -> None:
    """A foreign bundle is read as far as it goes; nothing of it is taken for granted."""
    (tmp_path / "configs").mkdir()
    odd = {"network_data_format": {"inputs": {"image": 1}, "outputs": []}, "changelog": 3}
    (tmp_path / "configs/metadata.json").write_text(json.dumps(odd))
    (tmp_path / "configs/train.json").write_text(json.dumps({"train": "@other", "validate": []}))
    (tmp_path / "configs/inference.yaml").write_text("network_def:\n  _target_: subprocess.run\n")
    output, _ = verify(tmp_path)
    assert "inference.yaml network_def would execute subprocess.run: subprocess is not among" in output
    assert "metadata.json network_data_format::inputs::image: 1 is not of type 'object'" in output
    assert "configs/train.json has no train::trainer" in output
    assert isinstance(read_bundle(tmp_path), Bundle)


def test_inference_that_differs_is_named(copy: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["preprocessing"]["transforms"] = "$@load + @geometry + @normalise + @noise"
        content["noise"] = [{"_target_": "RandGaussianNoised", "keys": "image", "prob": 1.0, "std": 9.0}]
        content.update(save_probabilities=True, run=content["run"][1:])  # without the seed

    edit(copy / "configs/inference.json", spoil)
    (sentence,) = check_inference(read_bundle(copy))
    assert sentence.startswith("inference twice on one image differs in noise_prob.nii.gz")


def test_inference_that_finds_nothing_is_named(copy: Path) -> None:
    edit(copy / "configs/inference.json", lambda content: content.update(run=["$@output_dir"]))
    (sentence,) = check_inference(read_bundle(copy))
    assert sentence == "configs/inference.json writes nothing for an image in dataset_dir: see where it looks"


def test_inference_finds_images_in_imagests(copy: Path) -> None:
    edit(
        copy / "configs/inference.json",
        lambda content: content["cases"].update(dataset_dir="$@dataset_dir + '/imagesTs'"),
    )
    assert list(check_inference(read_bundle(copy))) == []
