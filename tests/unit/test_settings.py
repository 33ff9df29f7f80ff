"""What a run is given: ids, arguments, types and ranges, refused in a sentence or taken as they are meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.compute.acceleration import MEMORY_FORMATS
from scripts.compute.runtimes import RUNTIMES
from scripts.data.remembered import CHECKS
from scripts.data.writers import writer_for
from scripts.errors import InputError, nearest
from scripts.rules import RULES
from scripts.settings import CONFIGS, check
from tests.commands import ROOT

OVERLAYS = [
    file
    for folder in ("network", "loss", "inferer", "task")
    for file in sorted((CONFIGS / folder).glob("*.json"))
]


def config(*files: str | Path, **ids: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([CONFIGS / file for file in files])
    parser.update({"output_dir": str(ROOT / "runs" / "none"), **ids})
    return parser


def refusal(*files: str | Path, **ids: Any) -> str:
    with pytest.raises(InputError) as caught:
        check(config(*files, **ids))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def taken(name: str, value: Any, **ids: Any) -> Any:
    parser = config("train.json", **{**ids, name: value})
    check(parser)
    return parser[name]


@pytest.mark.parametrize("base", ["train.json", "inference.json"])
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.stem)
def test_our_own_configs_are_taken_as_they_are(base: str, overlay: Path) -> None:
    if (base, overlay.stem) == ("inference.json", "border_weights"):
        return  # changes the patch of a training
    parser = config(base, overlay)
    before = json.dumps(parser.get())
    check(parser)
    assert json.dumps(parser.get()) == before


@pytest.mark.parametrize(
    "files",
    [
        ["train.json", "evaluate.json"],
        ["train.json", "evaluate.json", "ensemble.json"],
        ["train.json", "evaluate.json", "exported.json"],
        ["train.json", "multi_gpu_train.json", "evaluate.json"],
        ["inference.json", "ensemble.json"],
        ["inference.json", "exported.json"],
        ["inference.json", "large_volume.json"],
        ["inference.json", "dicom.json"],
        [ROOT / "models/inference.json"],
        [ROOT / "models/nuclei/inference.json", "dicom.json"],
    ],
    ids=str,
)
def test_our_own_overlays_are_known(files: list[str]) -> None:
    check(config(*files, checkpoint="model.pt"), trusted=False)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_epoch", 5, "--max_epoch 5: no such id; did you mean max_epochs"),
        ("Max-Epochs", 5, "no such id; did you mean max_epochs"),
        ("train.trainer.max_epochs", 5, "no such id; did you mean max_epochs"),
        ("network_deff", {"_target_": "UNet"}, "--network_deff UNet: no such id; did you mean network_def"),
        ("dropout", 0.2, "--dropout 0.2: no such id; did you mean network_def::dropout"),
        ("loging_file", "a", "--loging_file a: no such id; did you mean logging_file"),
        ("e", 5, "--e 5: no such id; what nothing reads has no effect"),
        ("train::dataloadr", {}, "--train::dataloadr {}: no such id; did you mean train::dataloader"),
        ("train::trainer::max_epoch", 5, "SupervisedTrainer takes no such argument; did you mean max_epochs"),
        ("network_def::drop_out", 0.1, "scripts.networks.UNet takes no such argument; did you mean dropout"),
        ("load::0::readr", "x", "--load::0::readr x: LoadImaged takes no such argument; did you mean reader"),
        ("network_def::_mod_", "x", "network_def::_mod_ x: MONAI knows no such key; did you mean _mode_"),
        ("loss", {"_taget_": "DiceLoss"}, "loss::_taget_ DiceLoss: .* did you mean _target_"),
        ("loss", {"_target_": "DiceLos"}, "loss is DiceLos: there is no such .*; did you mean DiceLoss"),
        ("loss", {"_target_": "torch.nn.L1Los"}, "there is no such .*; did you mean torch.nn.L1Loss"),
        ("loss", {"_target_": "no_where.Loss"}, "no_where cannot be imported"),
        ("reader", "NibabelRaeder", "reader is 'NibabelRaeder' .*did you mean NibabelReader"),
    ],
)
def test_what_nothing_knows_is_refused_with_what_is_near(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(config("train.json", **{name: value}))


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refusal("train.json", max_epoch=5, batch_size=0, **{"network_def::drop_out": 0.1})
    assert all(name in said for name in ("--max_epoch 5", "--network_def::drop_out 0.1", "batch_size is 0"))


def test_an_id_of_ones_own_is_known_where_something_refers_to_it_and_a_note_always() -> None:
    check(config("train.json", rate=0.01, learning_rate="@rate"))
    check(config("train.json", rates={"low": 0.01}, learning_rate="$@rates::low * 2"))
    check(config("train.json", _why="tried on Monday"))
    check(config("train.json", **{"train::extra": [], "train::handlers": "@train::extra"}))
    assert "--rate 0.01: no such id" in refusal("train.json", rate=0.01)


def test_a_reference_to_nothing_is_named_where_it_is_needed() -> None:
    said = refusal("train.json", **{"optimizer::lr": "@learning_rat"})
    assert said == "optimizer refers to @learning_rat, an id that is nowhere; did you mean learning_rate"
    assert "did you mean train::trainer" in refusal("train.json", run=["$@set_up", "$@train::trainr.run()"])
    check(config("inference.json", "task/nuclei.json"))  # `patch` of a task refers to ids of a training


def test_an_argument_of_any_name_is_taken_where_its_component_takes_any() -> None:
    check(config("train.json", **{"load::0::mmap": False}))


def test_ids_of_another_bundle_are_those_of_its_own_configs(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"ckpt_path": "model.pt"}')
    check(config("train.json", ckpt_path="a"), configs=[CONFIGS, tmp_path])
    assert "--ckpt_pat a: no such id" in refusal("train.json", ckpt_pat="a")


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("resume", "false", False),
        ("amp", "False", False),
        ("instances", "no", False),
        ("compile", 0, False),
        ("resume", "true", True),
        ("max_epochs", "5", 5),
        ("max_epochs", 1e3, 1000),
        ("learning_rate", "1e-3", 0.001),
        ("cache_rate", "0.5", 0.5),
        ("patch_size", 16, [16, 16, 16]),
        ("patch_size", "[16, 32, 16]", [16, 32, 16]),
        ("patch_size", (16, 32, 16), [16, 32, 16]),
        ("patch_size", ["16", "32", "16"], [16, 32, 16]),
        ("patch_size", [16.0, 32, 1.6e1], [16, 32, 16]),
        ("channels", [16.0, 32], [16, 32]),
        ("labels", {"background": 0.0, "a": 7}, {"background": 0, "a": 7}),
        ("flip_axes", 1, [1]),
        ("flip_axes", "[]", []),
        ("spacing", "1.5", [1.5, 1.5, 1.5]),
        ("channels", "16,32", [16, 32]),
        ("labels", '{"background": 0, "a": "7"}', {"background": 0, "a": 7}),
        ("device", "cpu", "cpu"),
        ("output_dir", "~/a", str(Path.home() / "a")),
        ("geometry", "[]", []),
        ("network_def::dropout", "0.25", 0.25),
        ("window_inferer::sw_batch_size", "2", 2),
        ("window_inferer::overlap", "0.25", 0.25),
        ("window_inferer::overlap", "[0.5, 0.5, 0]", [0.5, 0.5, 0]),
        ("window_inferer::roi_size", "[16, 32.0, 16]", [16, 32, 16]),
        ("window_inferer::roi_size", [16.0, 32, 16], [16, 32, 16]),
        ("window_inferer::roi_size", "16", 16),
        ("patch::rotate_range", "0.3", 0.3),
        ("network_def::strides", "[2, 2]", [2, 2]),
        ("train::trainer::decollate", "true", True),
        ("train::trainer::max_epochs", "7", 7),
        ("normalise::0::channel_wise", "false", False),
    ],
)
def test_what_clearly_means_something_is_taken_so(name: str, value: Any, meant: Any) -> None:
    assert repr(taken(name, value)) == repr(meant)


def test_two_axes_make_a_square() -> None:
    assert taken("patch_size", "16", spatial_dims="2") == [16, 16]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("batch_size", 0, "a whole number of 1 or more"),
        ("max_epochs", 0, "a whole number of 1 or more"),
        ("max_epochs", True, r"a whole number of 1 or more \(was the value forgotten\?\)"),
        ("max_epochs", "five", "a whole number of 1 or more"),
        ("max_epochs", 2.5, "a whole number of 1 or more"),
        ("max_epochs", None, "a whole number of 1 or more"),
        ("max_epochs", "$2 * 0", "a whole number of 1 or more"),
        ("minutes", 0, "a number above 0, or null"),
        ("minutes", True, r"a number above 0, or null \(was the value forgotten\?\)"),
        ("val_interval", 0, "a whole number of 1 or more"),
        ("samples_per_case", 0, "a whole number of 1 or more"),
        ("num_workers", -1, "a whole number from 0 to 1024"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("learning_rate", -1, "a number of 0 or more"),
        ("learning_rate", float("nan"), "a number of 0 or more"),
        ("weight_decay", "much", "a number of 0 or more"),
        ("alpha", 1.5, "0 to 1"),
        ("cache_rate", "$1.5", "0 to 1"),
        ("spatial_dims", 4, "a whole number from 2 to 3"),
        ("resume", "maybe", "true or false"),
        ("resume", None, "true or false"),
        ("amp", 2, "true or false"),
        ("patch_size", [16, 16], r"\(there are 3 spatial axes\): use a list of whole numbers above 0"),
        ("patch_size", [16, 0, 16], "a list of whole numbers above 0"),
        ("patch_size", "16x16", "a list of whole numbers above 0"),
        ("flip_axes", ["x"], "a list of axes from 0"),
        ("spacing", [1, 1, 0], r"a list of numbers above 0 \(mm\)"),
        ("channels", "[4,8", "a list of whole numbers above 0, one for each level"),
        ("spacing", [1, 1], r"\(there are 3 spatial axes\): use a list of numbers above 0"),
        ("spacing", [1, 1, 1, 1], r"\(there are 3 spatial axes\): use a list of numbers above 0"),
        ("channels", 16, "a list of whole numbers above 0, one for each level"),
        ("labels", ["a", "b"], "an object of names and whole numbers of 0 or more, background first"),
        (
            "labels",
            {"background": 0, "a": -1},
            r"\(a is -1\): use an object of names and whole numbers of 0 or more, background first",
        ),
        ("labels", {"background": 0, "a": 1, "b": 1}, r"\(a and b have the same value\)"),
        ("labels", {"background": 0, "a": 1, "ignore": 1}, r"\(a and ignore have the same value\)"),
        (
            "labels",
            {"a": 1, "background": 0},
            r"\(the first class is the one that is not scored.*background\)",
        ),
        ("labels", {"background": 0, "ignore": 255}, r"\(there are fewer than two classes\)"),
        ("labels", {0: "background", 1: "a"}, r"\(names come first, then values\)"),
        ("num_workers", 1e9, "a whole number from 0 to 1024"),
        ("geometry", None, "a list of transforms"),
        ("memory_gb", 0, "a number above 0, or null"),
        ("memory_format", "nhwc", "'contiguous' or 'channels_last'"),
        ("runtime", "tensorrt", "'torch' or 'compile' or 'onnxruntime' or 'openvino' or 'auto'"),
        ("device", "gpu", "cpu, cuda, cuda:N or mps"),
        ("device", "cuda:77", "cpu, cuda, cuda:N or mps"),
        ("device", "mps", "cpu, cuda, cuda:N or mps"),
        ("patch::affine_prob", 50, "0 to 1"),
        ("intensity::0::prob", "0,5", "0 to 1"),
        ("interpolation::imagee", "bilinear", "there is no imagee; did you mean image"),
        ("interpolation", "bilinear", "an object of keys"),
        ("output_dir", "a\0b", "there is a NUL in it"),
        ("dataset_dir", ["a", "b"], "the path of a folder"),
        ("window_inferer::roi_size", [16, 16], r"\(there are 3 spatial axes\): use a whole number, or one"),
        ("validate::dataloader::batch_size", 2, "1, as images have sizes of their own; window_inferer::sw_b"),
        ("window_inferer::roi_size", "large", "a whole number, or one"),
        ("window_inferer::overlap", "half", "a number, or a list of them"),
        ("window_inferer::overlap", "nan", "a number, or a list of them"),
        ("dataset_dir", "a#1", r"\(MONAI reads # as ::\)"),
        ("checkpoint", ["a.pt", "b::1.pt"], r"\(MONAI reads # as ::\)"),
        ("output_dir", "a::1", r"\(MONAI reads # as ::\)"),
        ("checkpoint", "a/" + "x" * 256 + ".pt", r"\(the name of a file or folder has at most 255 bytes\)"),
        ("dataset_dir", "ä" * 128, r"\(the name of a file or folder has at most 255 bytes\)"),
        ("output_dir", str(Path(__file__)), "a folder that can be written or made"),
        ("output_dir", str(Path(__file__) / "a"), "is no folder"),
        ("patch::affine_prob", True, r"0 to 1 \(was the value forgotten\?\)"),
        ("patch::elastic_std", True, r"a number, or a list of them \(was the value forgotten\?\)"),
    ],
)
def test_a_value_that_breaks_its_rule_is_named(name: str, value: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rf"{name.removesuffix('::imagee')} is .*{rule}"):
        check(config("train.json", **{name: value}))


def test_a_picture_holds_no_volume() -> None:
    assert "(a .png holds no volume)" in refusal("inference.json", output_ext=".png")
    check(config("inference.json", output_ext=".png", spatial_dims=2, patch_size=[16, 16]))


def test_what_volumes_from_disk_to_disk_do_not_do() -> None:
    check(config("inference.json", "large_volume.json", section=None, save_probabilities=False))
    for ids in ({"section": "testing"}, {"save_probabilities": "yes"}):
        check(config("inference.json", **ids))
        said = refusal("inference.json", "large_volume.json", **ids)
        assert said.startswith(f"{next(iter(ids))} is ")
        assert "(large_volume.json has no use for it: leave it out)" in said


def test_an_expression_without_value_is_named() -> None:
    assert refusal("train.json", seed="@seed").startswith("seed is '@seed', which has no value (")
    assert refusal("train.json", max_epochs="$five").startswith("max_epochs is '$five', which has no value")


def test_what_is_here_counts_only_where_it_is_used() -> None:
    check(config("train.json", device="cuda:77"), trusted=False)


def test_nothing_is_evaluated_or_imported_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    parser = config("train.json", loss={"_target_": "stranger.Loss"}, max_epochs="$exit('evaluated')")
    check(parser, trusted=False)


def test_a_text_is_meant_before_anything_is_made_of_it() -> None:
    """In a config that is at work already, as when `run` has begun."""
    parser = config("train.json", max_epochs="5", device="cpu")
    parser.parse()
    check(parser)
    assert parser.get_parsed_content("train::trainer::max_epochs") == 5
    assert parser.get_parsed_content("device") == "cpu"
    parser = config("train.json")
    check(parser)
    assert parser.get_parsed_content("device") in (torch.device("cpu"), torch.device("cuda"))


def test_choices_are_those_of_the_components() -> None:
    assert RULES["memory_format"].says == " or ".join(map(repr, MEMORY_FORMATS))
    assert set(eval(RULES["runtime"].says.replace(" or ", ","))) == set(RUNTIMES)
    assert set(eval(RULES["check"].says.replace(" or ", ","))) == set(CHECKS)
    for suffix in eval(RULES["output_ext"].says.replace(" or ", ",")):
        assert writer_for(suffix)


def test_every_scalar_of_our_configs_has_a_rule() -> None:
    scalars = {
        key
        for name in ("train", "inference", "evaluate", "loss/border_weights", "network/unet3d2016")
        for key, value in json.loads((CONFIGS / f"{name}.json").read_text()).items()
        if isinstance(value, bool | int | float) or (isinstance(value, str) and not value.startswith("@"))
    }
    assert scalars - RULES.keys() == {
        *("augment", "train::preprocessing::transforms", "validate::dataloader::_target_")
    }


@pytest.mark.parametrize(
    ("name", "near"),
    [("UNett", "; did you mean UNet"), ("unet", "; did you mean unet"), ("xyz", "")],
)
def test_nearest(name: str, near: str) -> None:
    assert nearest(name, ["UNet", "unet", "SegResNet"]) == near
