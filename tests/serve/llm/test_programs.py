"""Compiled programs on disk: found again, never half, never wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.compile_cache import keeping_compiled, passing_by_compile_cache
from ziggurat.core.errors import ConfigError
from ziggurat.serve.llm.programs import Programs


def declare(directory, factor=2.0):
    made = Programs(directory)
    made.add(
        "scale", lambda x, y: (x * factor, y + 1), jnp.ones(3), np.zeros(2, np.int32), donate=0
    )
    return made


def test_a_second_start_loads_what_the_first_compiled(tmp_path):
    directory = tmp_path / "programs"
    first = declare(directory)
    assert first.compile_all()[0] == 1
    assert first.loaded == 0
    second = declare(directory)
    assert second.compile_all()[0] == 1
    assert second.loaded == 1
    given = jnp.arange(3.0)
    out, count = second["scale"](given, np.array([1, 2], np.int32))
    assert (out.tolist(), count.tolist()) == ([0.0, 2.0, 4.0], [2, 3])
    assert given.is_deleted(), "it may overwrite what it was given"
    assert len(list(directory.iterdir())) == 1, "no temporary file is left"


def test_another_program_finds_nothing(tmp_path):
    declare(tmp_path).compile_all()
    other = declare(tmp_path, factor=3.0)
    other.compile_all()
    assert other.loaded == 0
    assert other["scale"](jnp.ones(3), np.zeros(2, np.int32))[0].tolist() == [3.0] * 3


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_made_anew(tmp_path, caplog, damage):
    declare(tmp_path).compile_all()
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    again = declare(tmp_path)
    again.compile_all()
    assert again.loaded == 0
    assert "is damaged" in caplog.text
    third = declare(tmp_path)
    third.compile_all()
    assert third.loaded == 1


def test_a_directory_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"compile cache .*expected a directory"):
        Programs(tmp_path / "file")


def waves(x):
    return jnp.sin(x) @ jnp.cos(x).mean(0)


@pytest.mark.parametrize("in_memory", [False, True])
def test_programs_that_jax_keeps_too_are_kept_whole(tmp_path, in_memory):
    """XLA:CPU serialises what came out of JAX's cache, just now or earlier in this process, without
    its functions."""

    def compiled(directory):
        made = Programs(directory)
        made.add("mean", waves, jnp.ones((64, 64)))
        assert made.compile_all()[0] == 1
        return made

    with keeping_compiled(tmp_path / "of jax", least_s=0.0):
        wanted = compiled(None)["mean"](jnp.ones((64, 64)))
        assert any((tmp_path / "of jax").iterdir())
        jax.clear_caches()
        if in_memory:
            compiled(None)
        assert compiled(tmp_path / "ours").loaded == 0
        again = compiled(tmp_path / "ours")
        assert again.loaded == 1
        np.testing.assert_array_equal(again["mean"](jnp.ones((64, 64))), wanted)


def test_blocks_that_pass_by_the_cache_may_overlap(tmp_path):
    before = jax.config.jax_enable_compilation_cache
    first, second = passing_by_compile_cache(), passing_by_compile_cache()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not jax.config.jax_enable_compilation_cache
    second.__exit__(None, None, None)
    assert jax.config.jax_enable_compilation_cache == before
