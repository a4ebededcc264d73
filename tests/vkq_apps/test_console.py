"""Progress lines of a run."""

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from rich.status import Status

from vkq_apps.terminal import compiling, console
from vkq_apps.terminal.progress import resumable


@pytest.fixture(autouse=True)
def _small_programs_count(monkeypatch):
    monkeypatch.setattr(compiling, "_SECONDS", 0.0)


@jax.jit
def double(x):
    return x + x


def test_people_hear_once_that_programs_are_compiled(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "log", Console(file=shown, markup=False, width=80))
    with console.stage("answering", lambda: "compiling for 3 tokens"):
        double(jnp.ones(2))
        double(jnp.ones(3))
    assert shown.getvalue() == "answering ...\ncompiling for 3 tokens ...\n"
    with console.stage("again", lambda: "compiling for 3 tokens"):
        double(jnp.ones(3))  # nothing is compiled any more
    with console.stage("unasked"):
        double(jnp.ones(4))
    assert shown.getvalue().splitlines()[2:] == ["again ...", "unasked ..."]


def test_a_terminal_shows_it_beside_the_spinner(monkeypatch):
    shown, updates = io.StringIO(), []
    monkeypatch.setattr(console, "log", Console(file=shown, force_terminal=True, width=80))
    monkeypatch.setattr(Status, "update", lambda self, text: updates.append(text))
    with console.stage("answering", lambda: "compiling [3]") as show:
        double(jnp.ones(5))
        show("yes")
    assert updates == ["answering: compiling [3] ...", "answering: [bold]yes"]
    assert "answering" in shown.getvalue()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_run_that_ends_early_says_what_it_left(tmp_path, failure):
    shown = io.StringIO()
    log = Console(file=shown, width=400)
    with pytest.raises(failure), resumable(log, tmp_path / "none"):
        raise failure
    with pytest.raises(failure), resumable(log, None):
        raise failure
    assert shown.getvalue() == ""
    with pytest.raises(failure), resumable(log, tmp_path):
        raise failure
    assert shown.getvalue() == f"{tmp_path} keeps what is done: --resume goes on from it\n"
    with resumable(log, tmp_path):
        shown.truncate(shown.seek(0))
    assert shown.getvalue() == ""
