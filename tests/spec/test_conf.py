"""conf/, the packages and the tests are held in step: names, keys, defaults, comments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from smolcluster.cluster.inventory import SSH, Node
from smolcluster.spec.build import PACKAGES, component_class, conf_dir, groups
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.run import RunSpec, Train
from smolcluster.spec.schema import defaults

ROOT = Path(__file__).parents[2]
FILES = [file for group in groups().values() for file in sorted((conf_dir() / group).glob("*.yaml"))]
ONE_MODULE = ("cluster", "schedule", "logging")
"""Groups whose options are classes of one module."""


def config_of(file: Path) -> dict[str, Any]:
    return {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "defaults"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_lists_every_key_with_the_classs_default(file: Path) -> None:
    config, group = config_of(file), file.parent.name
    cls = component_class(group, config.pop("_target_"))
    assert cls is not None
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    assert set(config) == fields, "every key is in the yaml, and no other"
    if group == "cluster":
        return  # inventories: what stands there is meant to differ
    for key, default in defaults(cls).items():
        if default is dataclasses.MISSING:
            assert config[key] == "???", key
        elif not str(config[key]).startswith("${"):
            value = tuple(config[key]) if isinstance(config[key], list) else config[key]
            assert (float(value) if isinstance(default, float) else value) == default, key


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_key_has_a_comment(file: Path) -> None:
    for line in file.read_text().splitlines():
        if re.match(r"\w+:", line) and not line.startswith(("_target_", "defaults")):
            assert "#" in line, f"{file.name}: {line}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parent.name not in ONE_MODULE], ids=lambda f: f"{f.parent.name}/{f.stem}"
)
def test_option_module_and_test_have_one_name(file: Path) -> None:
    group = file.parent.name
    module = config_of(file)["_target_"].rpartition(".")[0]
    assert module == f"{PACKAGES[group]}.{file.stem}"
    places = {"comms": "conformance/test_transports", "pipeline": "pipeline/test_pipelines"}
    wanted = places.get(group, f"{group}/test_{file.stem}")
    assert (ROOT / "tests" / f"{wanted}.py").is_file(), wanted


def test_defaults_of_train_are_those_of_the_class() -> None:
    config = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    assert config["train"] == dict(defaults(Train).items())
    assert set(config) - {"defaults", "hydra"} | set(groups()) | {"choices"} == {
        f.name for f in dataclasses.fields(RunSpec)
    }


@pytest.mark.parametrize("cluster", ["minis", "hybrid"])
def test_the_seeds_clusters_compose(cluster: str) -> None:
    (spec,) = validate_jobs(["algo=syncps", f"cluster={cluster}", "model=gpt"], None)
    assert spec.cluster.server_name == "mini1"
    assert spec.choices["data"] == "pydocs", "a language model brings its data"
    assert spec.batch_size == 32
    (own,) = validate_jobs(["model=gpt", "data=text", "data.path=/x", "train.epochs=1"], None)
    assert own.choices["data"] == "text", "and an explicit choice wins"


def test_spec_survives_the_way_to_a_node() -> None:
    import json

    from smolcluster.spec.build import build

    (spec,) = validate_jobs(["algo=edp", "cluster=hybrid", "model=gpt", "optim=sgd"], None)
    again = build(json.loads(json.dumps(spec.plain())))
    assert again == spec
    assert again.digest() == spec.digest()


def test_a_node_builds_nothing_else() -> None:
    from smolcluster.errors import ConfigError
    from smolcluster.spec.build import build

    (spec,) = validate_jobs([], None)
    for target in (
        "subprocess.Popen",
        "smolcluster.cluster.session.Pipes",
        "os.system",
        "smolcluster.algo.syncps.Server",
    ):
        plain = spec.plain()
        plain["algo"] = {"_target_": target}
        with pytest.raises(ConfigError, match="arbitrary classes are never built"):
            build(plain)


@pytest.mark.parametrize(("length", "batch"), [(128, 32), (256, 16), (32, 128), (8192, 1)])
def test_automatic_batch(length: int, batch: int) -> None:
    (spec,) = validate_jobs(["model=gpt", f"model.max_seq_len={length}"], None)
    assert spec.batch_size == batch


@pytest.mark.parametrize(("data", "epochs"), [("snli", 20), ("wikitext2", 30), ("mnist", 2)])
def test_automatic_epochs(data: str, epochs: int) -> None:
    model = "simplenn" if data == "mnist" else "gpt"
    (spec,) = validate_jobs([f"data={data}", f"model={model}"], None)
    assert spec.epochs == epochs
    (spec,) = validate_jobs([f"data={data}", f"model={model}", "train.epochs=7"], None)
    assert spec.epochs == 7, "an explicit value wins"


def schemas() -> Iterator[type]:
    """Every dataclass whose fields are typed in configurations: components, and what stands inside of them."""
    found = {component_class(file.parent.name, config_of(file)["_target_"]) for file in FILES}
    yield from sorted((cls for cls in found if cls is not None), key=lambda cls: cls.__qualname__ + cls.__module__)
    yield from (Train, Node, SSH)


@pytest.mark.parametrize("cls", list(schemas()), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_has_a_text_under_it(cls: type) -> None:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for field, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
            text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            assert text, f"{cls.__name__}.{ast.unparse(field.target)}"
