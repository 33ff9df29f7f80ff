"""`python -m bundle verify`: a sound bundle passes, each fault is found and named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bundle.ship.verify
from bundle.ship.verify import (
    READING,
    RUNNING,
    Bundle,
    check_code,
    check_files,
    check_inference,
    check_network,
    check_weights,
    image_size,
    printable,
    read_bundle,
    unpack,
    without_network,
)
from scripts.errors import InputError
from scripts.files import sha256
from scripts.judging.tables import read_means
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


def test_our_own_root_passes_with_all_that_lies_beside_it() -> None:
    """The whole command once; the other tests read alone, or run one check."""
    output, error = verify(CONFIGS.parent)
    assert not error, output
    lines = [line for line in output.splitlines() if not line.startswith("note")]
    assert [line.split()[0] for line in lines] == ["ok"] * len(READING | RUNNING), output
    assert bool(without_network()) == (len(lines) == len(output.splitlines()))


@pytest.mark.parametrize(
    ("name", "weights", "card"),
    [
        ("hippocampus", "models", "docs/README.md"),
        ("nuclei", "models/nuclei", "models/nuclei/README.md"),
    ],
)
def test_our_weights_are_those_of_the_card_and_packaged(
    name: str, weights: str, card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert all(f"| {score} | {value:.4f} |" in readme for score, value in read_means(files["scores"]).items())
    # the test above ran the network of one, and inference as both do it
    running = {} if name == "hippocampus" else {"network": RUNNING["network"]}
    monkeypatch.setattr(bundle.ship.verify, "RUNNING", running)
    output, error = verify(made)
    assert not error, output


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "inference.json",
            {"evaluator": {"_target_": "os.system"}},
            "inference.json evaluator would execute os.system: this version's own configs do not use it",
        ),
        (
            "train.json",
            {"seed": "$open('x').read()"},
            "train.json seed would execute $open('x').read(): uses open",
        ),
        (
            "train.json",
            {"load": [{"_target_": "torch.load", "f": "x"}]},
            "train.json load::0 would execute torch.load",
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


class Payload:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_weights_that_run_code_are_found_and_not_run(copy: Path) -> None:
    torch.save({"a": Payload()}, copy / "models/model.pt")
    (sentence,) = check_weights(read_bundle(copy))
    assert "models/model.pt holds more than weights (UnpicklingError)" in sentence
    torch.save({"a": torch.zeros(1 << 20)}, copy / "models/model.pt")
    with zipfile.ZipFile(copy / "models/model.pt") as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(copy / "models/model.PTH", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    (sentence,) = check_weights(read_bundle(copy))  # 4 MB in 4 kB: the next one is 4 GB
    assert "models/model.PTH holds more than weights" in sentence


def test_hash_of_large_files(copy: Path) -> None:
    entry = {"path": "models/model.pt", "url": "https://example.org", "hash_type": "sha256"}
    file = copy / "models/model.pt"
    for digest, count in ((sha256(file), 0), ("0" * 64, 1)):
        content = {"large_files": [{**entry, "hash_val": digest}]}
        (copy / "large_files.json").write_text(json.dumps(content))
        assert len(list(check_weights(read_bundle(copy)))) == count


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "~/x", 3, None, ["models"]])
def test_large_files_with_odd_paths(path: Any, copy: Path) -> None:
    (copy / "large_files.yml").write_text(json.dumps({"large_files": [{"path": path, "hash_val": "0"}]}))
    with pytest.raises(InputError, match=r"large_files\.yml names .*, which is no path in the bundle"):
        read_bundle(copy)


@pytest.mark.parametrize(
    "content", ["large_files: 3", "a: [", "[]", "large_files: [x]", "!!python/name:os.x"]
)
def test_large_files_of_another_form(content: str, copy: Path) -> None:
    (copy / "large_files.yml").write_text(content)
    with pytest.raises(InputError, match=r"large_files\.yml (cannot be read|has no list)"):
        read_bundle(copy)


def test_files(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "models/model.pt").rename(copy / "models/other.pt")
    shutil.copy(copy / "models/other.pt", copy / "models/a.pt")
    (copy / "LICENSE").unlink()
    (copy / "docs/link.txt").symlink_to(tmp_path)
    (copy / "docs/loop").symlink_to("loop")
    os.mkfifo(copy / "configs/pipe.json")  # to open it is to wait for ever
    (copy / "configs/inference.YAML").write_text("network_def: {_target_: os.mkdir}")
    (copy / "scripts/__pycache__").mkdir()
    for name in ("docs/x.py", "scripts/x.so", "models/list.pkl", "models/list.weights", "numpy.py"):
        (copy / name).write_bytes(pickle.dumps([1]))
    monkeypatch.setattr(bundle.ship.verify, "LARGE_FILE", 60_000)
    (copy / "docs/large.png").write_bytes(bytes(70_000))
    found = read_bundle(copy)
    sentences = "\n".join(check_files(found))
    for message in (
        "LICENSE is missing",
        "models/model.pt is missing",
        "models holds a.pt, other.pt",
        "configs holds inference.YAML, inference.json: leave one",
        f"docs/link.txt is a link to {tmp_path}: put the file itself there",
        "docs/loop is a link to loop",
        "configs/pipe.json is no plain file",
        "scripts/__pycache__ holds compiled code",
        "docs/x.py is of a kind",
        "scripts/x.so is of a kind",
        "models/list.pkl is of a kind",
        "models/list.weights is of a kind",
        "numpy.py is no part of a bundle",
        "docs/large.png has 0 MB, above 25: name it in large_files.yml",
    ):
        assert message in sentences
    assert "inference.YAML network_def would execute os.mkdir" in "".join(check_code(found))


def test_git_is_never_asked(copy: Path, tmp_path: Path) -> None:
    """Its config names commands that it runs, and what it does not track is in the folder all the same."""
    proof = tmp_path / "proof"
    subprocess.run(["git", "init", "-q", copy], check=True)
    subprocess.run(["git", "-C", copy, "config", "core.fsmonitor", f"touch {proof}; false"], check=True)
    (copy / "docs/hidden.pkl").write_bytes(pickle.dumps([1]))
    for subject in (copy, Path(shutil.make_archive(str(tmp_path / "zip"), "zip", copy))):
        output, _ = verify(subject)
        assert not proof.exists()
        assert "- .git is no part of a bundle" in output
        assert "- docs/hidden.pkl is of a kind" in output
    subprocess.run(["git", "-C", copy, "status"], check=True, capture_output=True)
    assert proof.exists()
    shutil.rmtree(copy / ".git")
    (copy / ".git").write_text("gitdir: nowhere")
    assert "- .git is no part of a bundle" in verify(copy)[0]


def test_code_of_somebody_else_is_named_and_runs_only_when_it_is_trusted(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (copy / "scripts/labels.py").open("a") as file:
        file.write("raise SystemExit\n")
    (copy / "configs/logging.conf").write_text("[handler_x]\nclass=FileHandler\nargs=('x',)\n")
    edit(copy / "configs/metadata.json", lambda content: content.update(task="$exit()"))
    monkeypatch.setattr(bundle.ship.verify, "RUNNING", {"network": lambda bundle: iter(["it ran"])})
    for options, label in (((), "FAILED"), (("--trust",), "trusted")):
        output, error = verify(copy, *options)
        assert f"{label:<9}code: " in output
        assert "- metadata.json task would execute $exit(): uses exit" in output
        assert "- configs/logging.conf [handler_x] would have Python evaluate class=FileHandler" in output
        assert "- scripts/labels.py: not the files of this version, and the last checks run them" in output
        assert ("it ran" in output) == bool(options)
        assert error


def test_what_a_stranger_writes_stays_in_its_line(copy: Path) -> None:
    edit(copy / "configs/inference.json", lambda content: content.update(seed="$1 +\nok       code: \x1b[2K"))
    output, _ = verify(copy, "--show")
    assert "$1 +\\nok       code: \\x1b[2K" in output
    assert "\nok       code" not in output
    (copy / "configs/\x1b[2K.json").write_text("{")
    assert "configs/\\x1b[2K.json cannot be read" in verify(copy)[1]
    assert printable("\udc80" + "x" * 1000) == "\\udc80" + "x" * 494 + "..."


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        *(([16, 16], [16, 16]), (["2**p*n", "2*n"], [2, 2]), (["*", "n"], [64, 1])),
        *((["16 * n + 4", "(2+n)**3"], [20, 27]), ([32], [32])),
    ],
)
def test_spatial_shapes(shape: list[Any], size: list[int]) -> None:
    assert image_size({"num_channels": 3, "spatial_shape": shape}) == [1, 3, *size]


@pytest.mark.parametrize(
    "length",
    [
        *("9**9**9", "9**99999999", "n**n**99", "2*", "", "**", "x", "0", "-4", "1.5", "0*n", "n" * 100),
        *("(" * 39, "9" * 40, "__import__('os')", "n.real", "2**p if n else 1", 1 << 30, -1, 2.5, True, None),
    ],
)
def test_spatial_shapes_that_are_refused(length: Any) -> None:
    with pytest.raises(InputError, match=r"spatial_shape has .*: give a number from 1 to"):
        image_size({"num_channels": 1, "spatial_shape": [length]})


def test_image_that_no_network_takes(copy: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["network_data_format"]["inputs"]["image"]["spatial_shape"] = ["16000*n", "16000"]
        content["network_data_format"]["outputs"]["pred"]["spatial_shape"] = ["9**9**9", "n"]

    edit(copy / "configs/metadata.json", spoil)
    output, _ = verify(copy)
    assert "inputs::image: an image of [1, 1, 16000, 16000] has more than" in output
    assert "outputs::pred: spatial_shape has '9**9**9': give a number" in output


def test_processes_have_a_home_of_their_own_and_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", "/home/somebody")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import json, os, pathlib, socket, sys\n"
            "found = socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1])))\n"
            "home = pathlib.Path.home()\n"
            "(home / 'x').touch()\n"
            "print(json.dumps([dict(os.environ), str(home), found]))\n"
        )
        done = bundle.ship.verify.run(["-c", code, str(port)], tmp_path)
    environment, home, refused = json.loads(done.stdout)
    assert "secret" not in environment.values()
    assert home == environment["TMPDIR"] != "/home/somebody"
    assert not Path(home).exists()
    assert bool(refused) == bool(without_network())


def test_system_that_cannot_cut_off_the_network(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.ship.verify, "RUNNING", {})
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "note     this system cannot cut the checks below off from the network" in verify(packaged)[0]


@pytest.mark.parametrize("said", ["", "no JSON", "3", '{"shape": []}'])
def test_probe_that_says_nothing(said: str, packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, said, "the last line")
    monkeypatch.setattr(bundle.ship.verify, "run", lambda *arguments: done)
    (sentence,) = check_network(read_bundle(packaged))
    assert sentence.endswith("does not run on [1, 1, 16, 16]: the last line")


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
    size, twice, dropout, monai = check_network(read_bundle(copy))
    assert size.startswith(
        "the network gives [1, 1, 16, 15] for [1, 1, 16, 16], metadata.json says [1, 3, 16, 16]"
    )
    assert twice.startswith("the network gives two results for one image")
    assert dropout.startswith("the network takes no dropout")
    assert monai.startswith("monai.bundle verify_net_in_out fails: ValueError: output channel number `1`")


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


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a.txt": bytes(200 << 20)}, "would unpack to 200 MB, more than weights can be packed"),
        ({"a.txt": b"", "A.TXT": b""}, r"holds the entry A\.TXT twice"),
        ({"a": b"", "a/b": b""}, "cannot be unpacked"),
    ],
)
def test_zips_that_are_refused(entries: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=message):
        unpack(tmp_path / "bad.zip", tmp_path)


def test_broken_and_encrypted_zips(packaged: Path, tmp_path: Path) -> None:
    content = packaged.with_suffix(".zip").read_bytes()
    flags = content.index(b"PK\1\2") + 8  # of the first entry in the directory; bit 0: encrypted
    for offset, value in ((len(content) // 2, content[len(content) // 2] ^ 0xFF), (flags, 1)):
        spoilt = bytearray(content)
        spoilt[offset] = value
        (tmp_path / "bad.zip").write_bytes(spoilt)
        with pytest.raises(InputError, match="cannot be unpacked"):
            unpack(tmp_path / "bad.zip", tmp_path)


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
    assert (
        "inference.yaml network_def would execute subprocess.run: this version's own configs do not use it"
        in output
    )
    assert "metadata.json network_data_format::inputs::image: 1 is not of type 'object'" in output
    assert "configs/train.json has no train::trainer" in output
    assert isinstance(read_bundle(tmp_path), Bundle)


def fake_inference(monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Path], object]) -> None:
    """Have `write` stand for an inference; it gets the image and the output folder."""

    def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        places = {
            name: Path(arguments[arguments.index(f"--{name}") + 1]) for name in ("dataset_dir", "output_dir")
        }
        status = write(places["dataset_dir"], places["output_dir"])
        return subprocess.CompletedProcess(arguments, int(status is False), "", "no images")

    monkeypatch.setattr(bundle.ship.verify, "run", run)


def test_inference_that_differs_is_named(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(data: Path, output: Path) -> None:
        """The same labels, and probabilities that are others in each folder."""
        output.mkdir()
        for image in data.glob("noise*"):
            (output / "noise_seg.png").write_bytes(image.read_bytes())
            (output / "noise_prob.nii.gz").write_text(output.name)

    fake_inference(monkeypatch, write)
    (sentence,) = check_inference(read_bundle(packaged))
    assert sentence.startswith("inference twice on one image differs in noise_prob.nii.gz")


def test_inference_that_finds_nothing_is_named(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_inference(monkeypatch, lambda data, output: None)
    (sentence,) = check_inference(read_bundle(packaged))
    assert sentence == "configs/inference.json writes nothing for an image in dataset_dir: see where it looks"


def test_inference_that_looks_in_imagests(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(data: Path, output: Path) -> bool:
        """A bundle that copies what lies there."""
        if (data / "imagesTs").is_dir():
            shutil.copytree(data / "imagesTs", output)
        return output.is_dir()

    fake_inference(monkeypatch, copy)
    assert list(check_inference(read_bundle(packaged))) == []
