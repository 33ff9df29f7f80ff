"""`python -m bundle export`: every file computes what the network computes, without PyTorch where it can."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch

import bundle.ship.export
import bundle.ship.quantise
from bundle.runs.experiments import parser_of
from bundle.ship.export import FORMATS, Model, read_model, tile_sizes, write
from bundle.ship.verify import list_files
from scripts.compute import runtimes
from scripts.compute.exported import Exported
from scripts.errors import InputError
from scripts.networks import UNet
from scripts.recipe import for_inference, read_recipe
from tests.commands import CONFIGS, command, invoke, read_array, run, unchanged_process, written
from tests.workflows.packaging import package

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime", "openvino"))),
        reason="needs requirements-runtimes.txt",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# Single precision through a few layers, summed in another order.
TOLERANCE = 1e-4

#: What a machine without a GPU makes, in the order of the table.
MADE = ("pt2", "onnx", "openvino", "torchscript")
TABLE = ["PyTorch", *(name for name in FORMATS if not FORMATS[name].rounded)]
TABLES = ["export.csv", "export.json", "inference.json", "metadata.json"]
FILES = ["model.bin", "model.onnx", "model.pt2", "model.ts", "model.xml"]


def export(source: Path, output: Path, *options: object) -> Any:
    given = "--bundle" if source.is_dir() else "--args_file"
    with unchanged_process():
        return invoke("export", given, source, "--output_dir", output, *options)


@pytest.fixture(scope="module")
def exported(packaged: Path, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in every format, judged on two cases."""
    folder = tmp_path_factory.mktemp("exported")
    result = export(packaged, folder, "--dataset_dir", cells, "--section", "testing", "--rounds", 2)
    assert result.exit_code == 0, result.output + str(result.exception)
    (folder / "printed.txt").write_text(result.stdout)
    return folder


def test_table_of_every_format(exported: Path) -> None:
    tables = [*TABLES, "export.png", "printed.txt"]
    assert written(exported) == sorted([*FILES, *tables])
    rows = {row["format"]: row for row in json.loads((exported / "export.json").read_text())}
    assert list(rows) == TABLE
    assert next(iter(FORMATS)) == "pt2"
    for name in MADE:
        row = rows[name]
        size = sum((exported / file).stat().st_size for file in FORMATS[name].files)
        assert row["MB"] == pytest.approx(size / 1e6)
        assert 0 <= row["largest difference"] < TOLERANCE
        assert row["other label"] < 0.001
        assert row["dice difference"] < 0.001
        assert row["dice"] == pytest.approx(rows["PyTorch"]["dice"], abs=0.001)
        assert row["cases"] == 2
        assert len(row["seconds of each round"]) == 2
        assert row["seconds a case"] == pytest.approx(np.mean(row["seconds of each round"]))  # of two
    assert rows["onnx"]["largest difference"] > 0
    with (exported / "export.csv").open() as file:
        assert [row["format"] for row in csv.DictReader(file)] == list(rows)
    lines = (exported / "printed.txt").read_text().splitlines()
    assert lines[0].split("  ")[0] == "format"
    assert [line.split()[0] for line in lines[1:7]] == list(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_is_a_line_in_the_table(exported: Path) -> None:
    row = json.loads((exported / "export.json").read_text())[4]
    assert row["format"] == "tensorrt"
    assert row["file"] is row["MB"] is row["dice"] is None
    assert row["note"].startswith("not made: TensorRT needs a GPU")
    assert f"tensorrt: {row['note']}" in (exported / "printed.txt").read_text()


#: Reads images and logits from files and computes the logits again, with the packages that are named alone.
FOREIGN = {
    "onnxruntime": """
import sys
import numpy as np
import onnxruntime
model = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
compute = lambda image: model.run(["pred"], {"image": image})[0]
""",
    "openvino": """
import sys
import numpy as np
import openvino
model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
compute = lambda image: model({"image": image})["pred"]
""",
}
COMPARE = """
for case in range(int(sys.argv[2])):
    image, logits = (np.load(f"{sys.argv[1]}/{what}{case}.npy") for what in ("image", "logits"))
    np.testing.assert_allclose(compute(image), logits, atol=1e-4, rtol=1e-4)
assert "torch" not in sys.modules and "monai" not in sys.modules
print("same")
"""


@pytest.mark.parametrize("runtime", FOREIGN)
def test_a_runtime_that_knows_no_pytorch_gives_the_same(
    runtime: str, exported: Path, packaged: Path, tmp_path: Path
) -> None:
    network = read_model(packaged, {}, None, tmp_path).network
    sizes = [(1, 32, 32), (2, 48, 32), (3, 64, 80), (1, 16, 16)]
    for case, (number, *size) in enumerate(sizes):
        image = torch.randn((number, 1, *size), generator=torch.Generator().manual_seed(case))
        with torch.no_grad():
            logits = network(image)
        np.save(tmp_path / f"image{case}.npy", image.numpy())
        np.save(tmp_path / f"logits{case}.npy", logits.numpy())
    done = command("-c", FOREIGN[runtime] + COMPARE, str(tmp_path), str(len(sizes)), cwd=exported)
    assert done.stdout == "same\n", done.stderr
    np.save(tmp_path / "logits0.npy", logits.numpy()[:, :, :1, :1] + np.zeros((1, 3, 32, 32), np.float32))
    done = command("-c", FOREIGN[runtime] + COMPARE, str(tmp_path), str(len(sizes)), cwd=exported)
    assert "Not equal to tolerance" in done.stderr  # it can fail


def test_pt2_and_torchscript_hold_the_configs(exported: Path, packaged: Path) -> None:
    names = ["inference.json", "metadata.json"]
    held: dict[str, Any] = dict.fromkeys(names, "")
    torch.export.load(str(exported / "model.pt2"), extra_files=held)
    config, metadata = (json.loads(held[name]) for name in names)
    assert config["labels"] == json.loads((packaged / "configs/inference.json").read_text())["labels"]
    assert metadata == json.loads((packaged / "configs/metadata.json").read_text())
    held = dict.fromkeys(names, "")
    torch.jit.load(str(exported / "model.ts"), _extra_files=held)
    assert json.loads(held["inference.json"]) == config


def test_files_carry_the_recipe(exported: Path, packaged: Path) -> None:
    """That of the package, with their own hashes; alone it segments with the first of them."""
    given = json.loads((packaged / "configs/inference.json").read_text())
    for name in FILES:
        recipe = read_recipe(exported / name, given)
        assert recipe is not None
        assert recipe.facts["weights"].keys() == set(FILES)
    assert recipe.config["checkpoint"]["name"] == "model.pt2"
    assert recipe.config["network"]["_target_"].endswith("Exported")
    with pytest.raises(InputError, match=r"normalise was \[NormalizeIntensityd\] and is \[\]"):
        read_recipe(exported / "model.onnx", {**given, "normalise": []})


def test_evaluation_and_inference_take_an_exported_network(
    exported: Path, packaged: Path, cells: Path, tmp_path: Path
) -> None:
    def summary(name: str, checkpoint: Path, *overlays: str) -> str:
        shared = {"checkpoint": str(checkpoint), "amp": False, "runtime": "torch"}
        shared["output_dir"] = str(tmp_path / name)
        run(str(packaged / "configs/train.json"), "evaluate", *overlays, **shared, dataset_dir=str(cells))
        images = str(cells / "imagesTs")
        run(str(packaged / "configs/inference.json"), *overlays, **shared, dataset_dir=images)
        return (tmp_path / name / "evaluation/summary.json").read_text()

    expected = summary("torch", packaged / "models/model.pt")
    pictures = [name for name in written(tmp_path / "torch") if name.endswith("_seg.png")]
    assert len(pictures) == 2
    for file in ("model.pt2", "model.onnx"):
        assert summary(file, exported / file, "exported") == expected
        for name in pictures:
            assert (read_array(tmp_path / file / name) == read_array(tmp_path / "torch" / name)).all()
    places = {"dataset_dir": str(cells / "imagesTs"), "output_dir": str(tmp_path / "alone")}
    run(str(exported / "inference.json"), **places)
    for name in pictures:
        assert (read_array(tmp_path / "alone" / name) == read_array(tmp_path / "torch" / name)).all()


@pytest.mark.long
@pytest.mark.skipif(not find_spec("nncf"), reason="nncf is not installed")
def test_int8_lies_beside_the_weights_for_precision_fast(
    packaged: Path,
    workshop: Path,
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = shutil.copytree(packaged, tmp_path / "mine")
    few = export(mine, tmp_path / "out", "--format", "openvino-int8", "--dataset_dir", cells)
    assert "the training section has 3 cases whose voxels vary" in str(few.exception)
    blind = export(mine, tmp_path / "out", "--format", "openvino-int8")
    assert "--format openvino-int8 is calibrated on training tiles: give --dataset_dir" in str(
        blind.exception
    )
    assert written(mine / "models") == written(packaged / "models")

    monkeypatch.setattr(bundle.ship.quantise, "LEAST_CASES", 3)
    # of weights that nobody trained most voxels are ties: here nothing may change, and then anything
    monkeypatch.setattr(bundle.ship.export, "quantise", partial(bundle.ship.quantise.quantise, share=0.0))
    nothing = export(mine, tmp_path / "out", "--format", "openvino-int8", "--dataset_dir", cells)
    assert nothing.exit_code == 1
    assert "openvino-int8: no layer can be rounded to 8 bits" in nothing.output
    assert written(mine / "models") == written(packaged / "models")
    free = partial(bundle.ship.quantise.quantise, share=float("inf"))
    monkeypatch.setattr(bundle.ship.export, "quantise", free)
    made = export(mine, tmp_path / "out", "--format", "openvino-int8", "--dataset_dir", cells, "--rounds", 1)
    assert made.exit_code == 0, made.output + str(made.exception)
    assert f"openvino-int8, beside the weights: {mine / 'models/model.int8.xml'}" in made.output
    assert set(written(mine / "models")) - set(written(packaged / "models")) == {
        "model.int8.bin",
        "model.int8.xml",
    }
    assert written(tmp_path / "out") == ["export.csv", "export.json", "export.png"]
    row = json.loads((tmp_path / "out/export.json").read_text())[1]
    assert row["format"] == "openvino-int8"
    assert row["note"] == ""
    assert row["largest difference"] > 0
    assert row["cases"] == 1

    monkeypatch.setattr(runtimes, "SAME_CLASS", 0.0)
    monkeypatch.setattr(runtimes, "MEAN_DIFFERENCE", 1.0)
    places = {"dataset_dir": str(cells / "imagesTs"), "bundle_root": str(mine)}
    for precision in ("exact", "fast"):
        run(
            str(mine / "configs/inference.json"),
            **places,
            output_dir=str(tmp_path / precision),
            precision=precision,
        )
        assert ("runtime auto: took openvino in int8" in capsys.readouterr().out) == (precision == "fast")

    again = package(workshop, tmp_path / "dist", checkpoint=mine / "models/model.pt")
    assert again.exit_code == 0, again.output
    folder = tmp_path / "dist" / packaged.name
    for name in ("model.int8.xml", "model.int8.bin"):
        assert (folder / "models" / name).read_bytes() == (mine / "models" / name).read_bytes()
    assert list_files(folder)[1] == []


def volumetric(folder: Path) -> Model:
    """A network for volumes that nobody trained."""
    experiment = {"config_file": ["configs/train.json"], "patch_size": [16, 24, 2], "channels": [4, 8]}
    (folder / "experiment.json").write_text(json.dumps({**experiment, "output_dir": str(folder)}))
    torch.manual_seed(0)
    config = for_inference(parser_of(experiment).get())
    network = bundle.ship.export.ConfigParser(config).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    return read_model(folder / "experiment.json", {}, None, folder)


def test_volumes_in_every_format_on_every_size(tmp_path: Path) -> None:
    """The networks of the overlays are in `tests/networks`, a part of `make test-networks`."""
    model = volumetric(tmp_path)
    sizes = tile_sizes(model)
    assert len({size[1:] for size in sizes}) == 3
    assert {size[0] for size in sizes} == {1, 2}
    about = json.loads(model.metadata.read_text())
    assert about["name"] == "experiment"  # not what the working directory holds
    for chosen in MADE:
        result = write(chosen, model, tmp_path / "out")
        assert not result.note
        network = Exported(str(result.files[0]), model.network)
        for number, *size in sizes:
            tiles = torch.randn((number, 1, *size), generator=torch.Generator().manual_seed(number))
            with torch.no_grad():
                expected = model.network(tiles)
            scale = float(expected.abs().max())
            torch.testing.assert_close(network(tiles) / scale, expected / scale, atol=TOLERANCE, rtol=0)


def test_bad_input_is_a_sentence(packaged: Path, cells: Path, tmp_path: Path) -> None:
    def error(source: Path, *options: object) -> str:
        result = export(source, tmp_path / "out", *options)
        assert isinstance(result.exception, InputError), result.output
        return str(result.exception)

    bare = shutil.copytree(packaged, tmp_path / "bare")
    (bare / "models/model.pt").unlink()
    assert f"{bare}/models/model.pt: no such checkpoint; train first, or name one" in error(bare)
    other = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(4, 8))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    assert "a checkpoint of another network" in error(packaged, "--checkpoint", tmp_path / "other.pt")
    assert "has no configs/inference.json: name the folder of a bundle" in error(cells)
    config = json.loads((packaged / "configs/inference.json").read_text())
    (bare / "configs/inference.json").write_text(json.dumps({**config, "patch_size": [30, 32]}))
    sentence = error(bare, "--checkpoint", packaged / "models/model.pt")
    assert sentence.startswith("patch_size is [30, 32], which the network refuses (input size")
    assert not (tmp_path / "out").exists() or written(tmp_path / "out") == []
    (tmp_path / "file").write_text("mine")
    result = export(packaged, tmp_path / "file" / "out")
    assert "cannot be written (Not a directory): give another --output_dir" in str(result.exception)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written_and_the_others_done(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.ts").write_text("earlier")
    copyfile = shutil.copyfile

    def fill(source: Path, target: Path) -> None:
        copyfile(source, target)
        if target.suffix == ".ts":
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(bundle.ship.export.shutil, "copyfile", fill)
    result = export(packaged, tmp_path, "--format", "pt2", "--format", "torchscript")
    assert str(result.exception) == "--format torchscript failed: what is wrong and what to do stands above"
    assert (
        f"torchscript: {tmp_path}/model.ts could not be written, as the disk of {tmp_path} is full"
        in result.output
    )
    assert written(tmp_path) == [*TABLES, "model.pt2", "model.ts"]
    assert (tmp_path / "model.ts").read_text() == "earlier"
    rows = json.loads((tmp_path / "export.json").read_text())
    assert rows[1]["largest difference"] < TOLERANCE
    assert rows[2]["largest difference"] is None


#: In a process of its own, which PyTorch's writers would abort.
LIMITED = """
import resource, sys
from pathlib import Path
from bundle.ship.export import read_model, write

model = read_model(Path(sys.argv[1]), {}, None, Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # as if the disk were full
for name in ("pt2", "torchscript"):
    print(write(name, model, Path(sys.argv[2]) / "out").note)
"""


@pytest.mark.skipif(not find_spec("resource"), reason="no limits on this system")
def test_files_that_do_not_fit_are_a_sentence_each(packaged: Path, tmp_path: Path) -> None:
    done = command("-W", "ignore", "-c", LIMITED, str(packaged), str(tmp_path), cwd=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    sentences = [line for line in done.stdout.splitlines() if "could not be made" in line]
    assert [line.split()[0] for line in sentences] == ["model.pt2", "model.ts"], done.stdout
    assert all("File too large" in line and "free space if the disk is full" in line for line in sentences)
    assert not (tmp_path / "out").exists()


def test_a_format_that_fails_is_told_and_the_others_are_done(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such layer\nsecond line")

    monkeypatch.setattr(torch.export, "export", fail)
    result = export(packaged, tmp_path, "--format", "torchscript", "--format", "pt2")
    assert "--format pt2 failed" in str(result.exception)
    assert "pt2: model.pt2 could not be made in " in result.output
    assert "(no such layer): name the other formats with --format, or free space" in result.output
    assert "model.ts" in written(tmp_path)


def test_a_result_that_is_no_number_is_the_largest_difference() -> None:
    result = bundle.ship.export.Result()
    for value in (0.5, float("nan"), 0.25):
        result.compare(torch.tensor([value, 0.0]), torch.zeros(2))
    assert np.isnan(result.difference)


def test_what_is_found_in_an_empty_case_is_the_largest_dice_difference() -> None:
    """Where PyTorch rightly finds nothing, and where neither finds anything."""
    reference = bundle.ship.export.Result(dice=[0.9, math.nan, math.nan])
    other = bundle.ship.export.Result(dice=[0.9, 0.0, math.nan])
    row = bundle.ship.export.row_of("onnx", other, reference)
    assert row["dice difference"] == 1
    nothing = bundle.ship.export.Result(dice=[math.nan])
    assert bundle.ship.export.row_of("onnx", nothing, nothing)["dice difference"] is None


def test_missing_packages_are_named(packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bundle.ship.export, "find_spec", lambda name: None if name.startswith("onnx") else name
    )
    result = export(packaged, tmp_path, "--format", "onnx")
    assert (
        "onnx: not made: onnx is not installed: run pip install -r requirements-runtimes.txt" in result.output
    )
    assert "--format onnx failed" in str(result.exception)


def test_tensorrt_is_monais_command(packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is asked for; the command itself needs a GPU."""
    asked: dict[str, Any] = {}

    def trt_export(filepath: io.BytesIO, **options: Any) -> None:
        asked.update(options)
        filepath.write(b"engine")

    monkeypatch.setattr(monai.bundle, "trt_export", trt_export)
    monkeypatch.setattr(bundle.ship.export, "unavailable", lambda name: "")
    result = write("tensorrt", read_model(packaged, {}, None, tmp_path), tmp_path / "out")
    assert [file.read_text() for file in result.files] == ["engine"]
    assert (asked["net_id"], asked["precision"]) == ("network_def", "fp32")
    assert asked["input_shape"] == [1, 1, 32, 32]
    assert Path(asked["ckpt_file"]).name == "model.pt"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "torch_tensorrt is not installed" in bundle.ship.export.unavailable("tensorrt")
