"""Compiled programs that later runs of `vkq` find again."""

import os
import subprocess
import sys

import jax
import pytest

from tests.support.command import run
from vkq_apps.cli.compilation_cache import use_default_cache


def test_compiled_programs_are_kept_in_a_folder(capsys, tmp_path):
    names = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"]
    names += ["jax_persistent_cache_min_entry_size_bytes"]
    before = {name: getattr(jax.config, name) for name in names}
    (tmp_path / "file").touch()
    code, _, err = run(capsys, "--compilation-cache", str(tmp_path / "file"), "bench")
    assert code == 2
    assert "--compilation-cache: " in err
    assert "cannot be made a folder" in err
    try:
        code, _, _ = run(capsys, "--compilation-cache", str(tmp_path / "new" / "kept"), "bench")
        assert code == 0
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "kept")
        assert (tmp_path / "new" / "kept").is_dir()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_the_users_cache_is_the_default(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    use_default_cache(environment)
    folder = tmp_path / "vkq-jax" / "compiled"
    assert folder.is_dir()
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert float(environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]) < 1


@pytest.mark.parametrize(
    "own", [{"JAX_COMPILATION_CACHE_DIR": "mine"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}]
)
def test_variables_of_jax_come_first(tmp_path, own):
    environment = {"XDG_CACHE_HOME": str(tmp_path), **own}
    use_default_cache(environment)
    assert environment == {"XDG_CACHE_HOME": str(tmp_path), **own}
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    use_default_cache(environment)
    assert environment == {"XDG_CACHE_HOME": str(tmp_path / "file")}


@pytest.mark.ci
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"
    } | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "vkq_apps.cli.main", "demo", "--json"]
    kept = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout
        kept.append({file.name for file in tmp_path.rglob("*-cache")})
    assert kept[0]
    assert kept[1] == kept[0]
