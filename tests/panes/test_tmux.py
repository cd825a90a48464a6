"""tmux as a program: what it is told, and what is made of its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolcluster.panes import tmux
from tests.panes.sessions import needs_tmux, screen, sessions, until


@needs_tmux
def test_a_server_that_is_just_ending_is_asked_anew() -> None:
    """Each time the only session ends, and the server with it, perhaps a moment later."""
    for number in range(40):
        tmux.begin("-s", f"s{number}", "cat")
        assert tmux.exists(f"s{number}")
        tmux.end(f"s{number}")
    assert sessions() == []


@needs_tmux
def test_what_it_refuses_is_told_in_its_words() -> None:
    tmux.begin("-s", "taken", "cat")
    with pytest.raises(tmux.TmuxFailed, match="tmux: duplicate session: taken"):
        tmux.begin("-s", "taken", "cat")
    assert not tmux.exists("take"), "a part of a name is another name"
    tmux.end("take")
    assert tmux.exists("taken")
    tmux.end("taken")
    tmux.end("taken")


@needs_tmux
def test_a_module_is_found_whatever_the_server_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmux.begin("-s", "older", "-c", "/", "cat")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path};")
    (tmp_path.parent / f"{tmp_path.name};").mkdir()
    (tmp_path.parent / f"{tmp_path.name};" / "ours.py").write_text("print('it is me'); input()\n")
    tmux.begin("-s", "newer", "-c", "/", *tmux.command("ours"), *tmux.bare("=newer:", ""))
    until(lambda: "it is me" in screen("=newer:"), "a module of ours")
    for name in ("older", "newer"):
        tmux.end(name)


def test_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tmux"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(tmux, "ANSWER_S", 0.2)
    with pytest.raises(tmux.TmuxFailed, match=r"tmux: no answer within 0.2 s"):
        tmux.tell("list-sessions")
