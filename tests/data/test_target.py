from pathlib import Path

import pytest

from smolcluster.data import target
from smolcluster.errors import ConfigError


@pytest.mark.parametrize("text", ["json:loads", "a.b.c:d", "os:path.join"])
def test_a_right_form(text: str) -> None:
    assert not list(target.problems("data.target", text))


@pytest.mark.parametrize("text", ["json", "json.loads", ":loads", "json:", "a/b.py:f", "a b:c", "json:1"])
def test_a_wrong_form(text: str) -> None:
    (problem,) = target.problems("data.target", text)
    assert problem.rule == "must be package.module:name, importable on every node"


def test_it_is_called_with_its_arguments() -> None:
    assert target.call("k", "json:loads", {"s": "[1]"}) == [1]
    assert target.imported("k", "os:path.basename")("a/b") == "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere.at.all:f", r"No module named 'nowhere'"),
        ("json:nothing", r"has no attribute 'nothing'"),
        ("json:__name__", r"must name something callable, not 'json'"),
    ],
)
def test_what_cannot_be_imported(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.target={text}: .*{reason}"):
        target.imported("data.target", text)


def test_arguments_it_does_not_take() -> None:
    with pytest.raises(ConfigError, match=r"does not take these arguments: got an unexpected keyword argument 'x'"):
        target.call("data.target", "os:path.basename", {"p": "a", "x": 1})


@pytest.mark.parametrize(
    "name", ["json:loads", "json.decoder:JSONDecoder", "itertools:chain", "yaml:safe_load", "their.part:f", "single:f"]
)
def test_a_module_that_is_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their").mkdir()
    (tmp_path / "their" / "part.py").write_text("raise AssertionError('must not be imported')\n")
    (tmp_path / "single.py").write_text("raise AssertionError('must not be imported')\n")
    monkeypatch.chdir(tmp_path)
    assert list(target.missing("model.target", name)) == []


@pytest.mark.parametrize("name", ["nowhere:f", "json.nowhere:f", "json.decoder.deeper:f", "single.part:f"])
def test_a_module_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "single.py").write_text("raise AssertionError('must not be imported')\n")
    monkeypatch.chdir(tmp_path)
    (problem,) = target.missing("model.target", name)
    module = name.partition(":")[0]
    assert str(problem) == (
        f"model.target={name}: there is no module {module} here: neither in this folder ({tmp_path}) nor installed"
    )
