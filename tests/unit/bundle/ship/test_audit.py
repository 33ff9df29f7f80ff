"""What a config would execute is seen in every place where MONAI looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ReferenceResolver

from bundle.ship.audit import (
    MAX_VALUES,
    audit_experiment,
    executed,
    leads_out,
    logging_problems,
    read_config,
    walk,
)
from bundle.ship.export import read_model
from bundle.ship.package import package
from scripts.errors import InputError
from tests.commands import CONFIGS


def problems(config: Any) -> list[str]:
    return [found.problem for found in executed({"a.json": config}) if found.problem]


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').system('x')", "().__class__.__bases__", "import os", "from os import path"),
        *("torch.load('x')", "torch.hub.load('a', 'b')", "torch.save(1, '/x')", "torch", "[torch]"),
        *("monai.bundle.load('x')", "scripts._secret()", "import torch as list", "import torch, os"),
        *("import torch; torch.save(1, 'x')", "open('x')", "exec('1')", "getattr(torch, 'load')", "1 +"),
        *("lambda: os.remove('x')", "np.load('x')", "lambda list: list(1)", "lambda f: f(1)", "@a(1)"),
        *("@a.save('x')", "@a.__class__", "@imports::0.save", "__local_refs", "9**9**9", "'a' * 9"),
        *("[x for x in @a]", "(lambda: 1)()", "@a['x'](1)", "list(@a)(1)", "{'allow_pickle': True}"),
        *(
            "(x := 1)",
            "f'{@a}'",
            "['scripts.data.ImageReader', 'os.system'][1]",
            "@a" + " + 1" * 400,
            "(" * 900,
        ),
        "list(**@a)",
    ],
)
def test_expressions_that_are_refused(text: str) -> None:
    (found,) = executed({"a.json": {"b": ["x", f"${text}"]}})
    assert found.place == "a.json b::1"
    assert found.problem


def test_reference_in_quotes_that_lets_a_text_out_of_them(tmp_path: Path) -> None:
    """MONAI replaces references within quotes, so that this text ends early and `f` begins another one."""
    proof = tmp_path / "proof"
    text = f'$\'@f{{open("{proof}", "w")}}\''
    parser = ConfigParser({"f": 1, "x": text})
    parser.get_parsed_content("x")
    assert proof.exists()  # else it is no danger any more, and need not be refused
    assert problems({"f": 1, "x": text})
    assert problems({"f": 1, "x": text.replace("@f", "@#f")})


@pytest.mark.parametrize(
    "text",
    [
        *("$import torch", "$@a::b + [@c]", "$list(range(@n))"),
        *("$torch.device('cuda' if torch.cuda.is_available() else 'cpu')", "$not @save", "$@a['x'][::2]"),
        *(
            "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
            "$@evaluator.run()",
            "@network",
            "model.pt",
        ),
    ],
)
def test_texts_that_are_allowed(text: str) -> None:
    assert not problems(text)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"_target_": "os.system"}, "os.system"),
        ({"_target_": "torch.jit.load"}, "torch.jit.load"),
        ({"_target_": "monai.bundle.run"}, "monai.bundle.run"),
        ({"_target_": "run_cmd"}, "run_cmd"),
        ({"_target_": "scripts.networks._hidden"}, "scripts.networks._hidden"),
        ({"_target_": "$@a"}, "$@a"),
        ({"_target_": "@a"}, "@a"),
        ({"_target_": "%a"}, "%a"),
        ({"_target_": ["os.system"]}, "['os.system']"),
        ({"a": [[{"x": {"_target_": "os.system"}}]]}, "os.system"),
        ({"network_def::_target_": "numpy.save"}, "numpy.save"),
        ({"+network_def#_target_": "numpy.save"}, "numpy.save"),
        ({"_target_": "Compose", "_disabled_": "$exit()"}, "$exit()"),
        ({"_target_": "Compose", "_requires_": ["$exit()"]}, "$exit()"),
        ({"_target_": "Compose", "_mode_": "debug"}, "_mode_: debug"),
        ({"_target_": "Compose", "_mode_": "$@a"}, "_mode_: $@a"),
        ({"_target_": "Compose", "_debug_": True}, "_debug_: True"),
        ({"a": {"+load::0::allow_pickle": True}}, "allow_pickle: True"),
        ({"imports": ["$import os"]}, "$import os"),
        ({"norm": "%docs/evil.json::x"}, "%docs/evil.json::x"),
        ({"norm": "%x"}, "%x"),
        ({"norm": "%#x"}, "%#x"),
        ({"$exit()": 1}, "$exit()"),
        ({"reader": "numpy.load"}, "numpy.load"),
        ({"reader": "open", "file": "x", "mode": "w"}, "open"),
        ({"reader": ["scripts.data.ImageReader", "open"]}, "open"),
        ({"reader": "@other", "other": "open"}, "@other"),
        ({"load::0::reader": "__import__"}, "__import__"),
        ({"writer": "$@x"}, "$@x"),
        ({"anything": "shutil.rmtree"}, "shutil.rmtree"),
        ({"anything": "yaml.unsafe_load"}, "yaml.unsafe_load"),
    ],
)
def test_what_is_not_ours_is_seen_wherever_it_stands(config: Any, what: str) -> None:
    assert what in [found.what for found in executed({"a.json": config}) if found.problem]


def test_readers_by_reference() -> None:
    assert not problems(
        {"reader": "scripts.data.ImageReader", "load": [{"_target_": "LoadImaged", "reader": "@reader"}]}
    )


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        *(("/etc", True), ("~/x", True), ("../x", True), ("a/../../x", True), ("C:\\x", True)),
        *(("..\\x", True), ("models/model.pt", False), ("a..b", False), ("", False)),
        *(("$@bundle_root + '/models'", False), ("$@output_dir + '/a' + '/b'", False)),
        *(("$'/etc'", True), ("$'' + '/etc'", True), ("$@x + '/etc'", True), ("$[@bundle_root, '/x']", True)),
        *(("$@bundle_root + '/../x'", True), ("$@bundle_root + '/~'", True)),
        *(("s3://somebody/logs", True), ("$'https://' + @x", True), ("a:b", False)),
    ],
)
def test_paths_that_lead_out(text: str, leads: bool) -> None:
    assert leads_out(text) is leads


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.json", '{"a": ' + "[" * 100 + "]" * 100 + "}", "levels"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", "[1]", "no object"),
        ("a.json", json.dumps({"a": list(range(MAX_VALUES))}), "values"),
        ("a.json", '{"a": "' + "x" * (9 << 20) + '"}', "more than 8 MB"),
        ("a.yaml", "a: &x [1, 1]\nb: &y [*x, *x]\nc: [*y, *y]", "aliases"),
        ("a.yaml", "a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a.yaml", "a: 2020-01-01", "a is a date, which JSON does not have"),
        ("a.yaml", "1: x", "a key that is no text"),
    ],
)
def test_configs_that_cannot_be_read(file: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / file)


def test_walk_comes_by_everything_in_order() -> None:
    config = {"a": [1, {"b": None}], "c": "x"}
    assert list(walk(config)) == [
        *(((), config), (("a",), [1, {"b": None}]), (("a", 0), 1), (("a", 1), {"b": None})),
        *((("a", 1, "b"), None), (("c",), "x")),
    ]


def test_logging(tmp_path: Path) -> None:
    ours = (CONFIGS / "logging.conf").read_text()
    for change, found in (
        (("", ""), []),
        (("args=(sys.stdout,)", "args=(__import__('os').system('x'),)"), ["args=(__import__"]),
        (("args=(sys.stdout,)", "args=%(x)s\nx=(exit(),)"), ["args=%(x)s", "x=(exit(),)"]),
        (("class=StreamHandler", "class=FileHandler"), ["class=FileHandler"]),
        (("[formatter_line]", "[formatter_line]\ndefaults=exit()"), ["defaults=exit()"]),
        (("[loggers]", "[DEFAULT]\nkwargs={'x': 1}\n[loggers]"), ["kwargs="] * 12),
        (("[loggers]", "loggers"), ["cannot be read"]),
    ):
        file = tmp_path / "logging.conf"
        file.write_text(ours.replace(*change, 1))
        sentences = list(logging_problems(file))
        assert bool(sentences) == bool(found), change
        assert all(text in " ".join(sentences) for text in found), sentences


def test_experiments_from_elsewhere(tmp_path: Path) -> None:
    audit_experiment({"config_file": ["configs/train.json", "configs/task/nuclei.json"], "max_epochs": 1}, {})
    experiment: dict[str, Any] = {"config_file": ["configs/train.json", str(tmp_path / "task.json")]}
    (tmp_path / "task.json").write_text(json.dumps({"channels": [4, 8]}))
    audit_experiment({**experiment, "seed": "$exit()"}, {"seed": "$exit()"})
    with pytest.raises(
        InputError, match=r"The experiment seed would execute \$exit\(\): uses exit; a config"
    ):
        audit_experiment({**experiment, "seed": "$exit()"}, {})
    (tmp_path / "task.json").write_text(json.dumps({"network_def": {"_target_": "os.mkdir"}}))
    with pytest.raises(
        InputError, match=r"task\.json network_def would execute os\.mkdir: this version's own"
    ):
        audit_experiment(experiment, {})


def test_export_and_package_read_before_they_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "configs").mkdir()
    evil = {"network_def": f"$__import__('os').mkdir('{proof}')"}
    for name, config in (("train", evil), ("inference", evil), ("metadata", {})):
        (tmp_path / f"configs/{name}.json").write_text(json.dumps(config))
    args_file = tmp_path / "experiment.json"
    args_file.write_text(json.dumps({"config_file": [str(tmp_path / "configs/train.json")]}))
    message = r"train\.json network_def would execute \$__import__"
    for source in (tmp_path, args_file):
        with pytest.raises(InputError, match=message):
            read_model(source, {}, None, tmp_path)
    with pytest.raises(InputError, match=message):
        package(args_file, tmp_path / "model.pt", tmp_path, None, None, None, {})
    (tmp_path / "configs/train.json").write_text("{}")
    with pytest.raises(InputError, match=r"inference\.json network_def would execute \$__import__"):
        read_model(tmp_path, {}, None, tmp_path)
    (tmp_path / "configs/inference.json").write_text("{}")
    (tmp_path / "configs/metadata.json").write_text(json.dumps({"task": "$exit()"}))
    with pytest.raises(InputError, match=r"metadata\.json task would execute \$exit\(\)"):
        read_model(tmp_path, {}, None, tmp_path)
    assert not proof.exists()


def test_references_are_replaced_as_monai_does() -> None:
    """The audit reads what MONAI evaluates only as long as MONAI replaces references by this."""
    assert ReferenceResolver.update_refs_pattern("$@a::b + @c", {"a::b": 1, "c": 2}) == (
        "$__local_refs['a::b'] + __local_refs['c']"
    )
