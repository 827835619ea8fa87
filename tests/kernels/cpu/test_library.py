"""Building, finding and refusing the C++ library."""

import ctypes
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kernels.cpu_library import require_library

from ziggurat.core.errors import ConfigError, EnvironmentError
from ziggurat.kernels.cpu import build, library

AVX2 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})


@pytest.fixture
def looked_up(monkeypatch, tmp_path):
    """Look for the library in an empty directory, anew each time."""
    monkeypatch.setattr(library, "directories", lambda: [tmp_path])
    monkeypatch.setattr(library, "library", library.library.__wrapped__)
    return tmp_path


def test_a_level_needs_every_feature_it_uses():
    wide = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    names = [[x.name for x in build.levels("x86_64", f)] for f in (frozenset(), AVX2, wide)]
    assert names == [[], ["x86-64-v3"], ["x86-64-v4", "x86-64-v3"]]
    assert build.levels("x86_64", wide | {"avx512_vnni"})[0].name == "x86-64-v4-vnni"
    assert build.levels("riscv64", wide) == ()


def test_the_digest_changes_with_a_source(monkeypatch, tmp_path):
    before = build.digest()
    shutil.copytree(build.SOURCE, tmp_path / "source")
    (tmp_path / "source" / "tile.h").write_text("// other")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "source")
    assert build.digest.__wrapped__() != before


def test_the_library_says_what_it_is():
    require_library()
    found = library.library()
    assert found.path is not None
    assert found.path.name == build.file_name(
        next(x for x in build.LEVELS if x.name == found.level)
    )
    assert found.targets >= {"attention", "attention_gradient", "product", "cross_entropy"}
    assert found.threads >= 1


def test_nothing_built(looked_up):
    found = library.library()
    assert found.path is None
    assert found.targets == frozenset()
    assert "run ziggurat kernels build" in found.why_not or "no C++ compiler" in found.why_not


def test_stale_and_wrong_libraries_are_not_loaded(looked_up):
    if not build.levels():
        pytest.skip("no kernels for this CPU")
    level = build.levels()[0]
    (looked_up / f"cpu-{level.name}-0123456789abcdef.so").write_bytes(b"")
    assert library.library().why_not.startswith("built from other sources")
    assert len(build.stale_libraries(looked_up)) == 1
    right = looked_up / build.file_name(level)
    right.write_bytes(b"no library")
    assert "does not load" in library.library().why_not
    assert build.remove_stale(looked_up)
    assert list(looked_up.iterdir()) == [right]


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_a_library_that_is_not_what_its_name_says(looked_up, monkeypatch, tmp_path):
    """Another file under the right name is told by the digest inside it."""
    if not build.levels():
        pytest.skip("no kernels for this CPU")
    code = tmp_path / "other.c"
    code.write_text(
        'const char* ziggurat_digest(void) { return "other"; }\n'
        "long ziggurat_interface_minor(void) { return 0; }\n"
    )
    target = looked_up / build.file_name(build.levels()[0])
    command = [*build.compiler(), "-x", "c", "-shared", "-fPIC", str(code), "-o", str(target)]
    subprocess.run(command, check=True)
    assert ctypes.CDLL(str(target))
    assert "is not what its name says" in library.library().why_not


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("built", "here", "loads"), [(3, 5, True), (3, 3, True), (4, 3, False)])
def test_minor_versions_of_xlas_interface(looked_up, monkeypatch, tmp_path, built, here, loads):
    """A library built with an older jaxlib is used, one built with a newer jaxlib is not."""
    if not build.levels():
        pytest.skip("no kernels for this CPU")
    monkeypatch.setattr(build, "interface_version", lambda: (0, here))
    code = tmp_path / "library.c"
    code.write_text(
        f'const char* ziggurat_digest(void) {{ return "{build.digest()}"; }}\n'
        f"long ziggurat_interface_minor(void) {{ return {built}; }}\n"
        "long ziggurat_threads(void) { return 1; }\n"
        "long ziggurat_handler_count(void) { return 0; }\n"
        "const char* ziggurat_handler_name(long place) { return 0; }\n"
        "void* ziggurat_handler_address(long place) { return 0; }\n"
    )
    target = looked_up / build.file_name(build.levels()[0])
    command = [*build.compiler(), "-x", "c", "-shared", "-fPIC", str(code), "-o", str(target)]
    subprocess.run(command, check=True)
    found = library.library()
    assert (found.path is not None) == loads
    assert loads or "minor version 4 of XLA's interface and jaxlib has 0.3" in found.why_not


def test_no_compiler(looked_up, monkeypatch):
    nowhere = {"PATH": str(looked_up)}
    assert build.compiler(nowhere) is None
    assert build.compiler({**nowhere, "CXX": "no-such-compiler -O1"}) is None
    with pytest.raises(EnvironmentError, match=r"no C\+\+ compiler; expected .*XLA's own code"):
        build.build(build.LEVELS[0], looked_up, nowhere)
    monkeypatch.setattr(build, "compiler", lambda: None)
    if build.levels():
        assert "no C++ compiler is here" in library.library().why_not


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_what_the_compiler_refuses_is_one_line(monkeypatch, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "bad.cc").write_text("int f() { return no_such_name; }\n")
    monkeypatch.setattr(build, "SOURCE", source)
    with pytest.raises(EnvironmentError, match=r"error: .no_such_name. was not declared"):
        build.build(build.LEVELS[-3], tmp_path / "library")
    assert not list((tmp_path / "library").iterdir())


def test_the_switch(monkeypatch, looked_up):
    monkeypatch.setenv(library.SWITCH, "off")
    assert library.library().why_not == "ZIGGURAT_CPU_KERNELS=off"
    monkeypatch.setenv(library.SWITCH, "on")
    with pytest.raises(ConfigError, match="found 'on'; expected auto or off"):
        library.library()


def test_without_a_library_everything_works_as_before():
    """In a process of its own: with the switch off, a product is XLA's."""
    code = (
        "import jax, jax.numpy as jnp\n"
        "from ziggurat.kernels.linear import project\n"
        "x = jnp.ones((64, 8))\n"
        "text = jax.jit(project).lower(x, x.T).as_text()\n"
        "assert 'dot_general' in text and 'ziggurat' not in text\n"
    )
    environment = {**os.environ, library.SWITCH: "off"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class App:
    """What hatchling hands a build hook to speak through."""

    def __init__(self):
        self.warnings = []

    def display_warning(self, text):
        self.warnings.append(text)

    def display_waiting(self, text):
        pass


@pytest.fixture
def hook(monkeypatch, tmp_path):
    """The package's build hook with a compiler that only notes what it is asked for."""
    pytest.importorskip("hatchling")
    root = Path(__file__).parents[3]
    made = []

    def built(level, directory=None):
        made.append(level.name)
        (tmp_path / build.file_name(level)).touch()

    monkeypatch.setattr(build, "LIBRARY", tmp_path)
    monkeypatch.setattr(build, "build", built)
    monkeypatch.setattr(build, "remove_stale", list)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "levels", lambda: build.LEVELS[1:3])
    kind = runpy.run_path(str(root / "hatch_build.py"))["CpuKernels"]
    found = kind(str(root), {}, None, None, str(tmp_path), "wheel", App())
    return found, made


def test_an_editable_install_builds_for_this_cpu(hook):
    found, made = hook
    data = {"force_include": {}, "pure_python": True}
    found.initialize("editable", data)
    assert made == ["x86-64-v4"]
    assert data == {"force_include": {}, "pure_python": True}
    found.initialize("editable", data)
    assert made == ["x86-64-v4"], "it is there already"


def test_a_wheel_carries_every_level_and_the_systems_name(hook):
    found, made = hook
    data = {"force_include": {}, "pure_python": True}
    found.initialize("standard", data)
    assert made == ["x86-64-v4-vnni", "x86-64-v4", "x86-64-v3"]
    places = set(data["force_include"].values())
    assert places == {
        f"ziggurat/kernels/cpu/library/{build.file_name(x)}" for x in build.LEVELS[:3]
    }
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-")


def test_a_package_is_built_without_a_compiler_too(hook, monkeypatch):
    found, _ = hook

    def fails(level, directory=None):
        raise EnvironmentError("building the CPU kernels", found="no C++ compiler")

    monkeypatch.setattr(build, "build", fails)
    data = {"force_include": {}, "pure_python": True}
    found.initialize("standard", data)
    assert data == {"force_include": {}, "pure_python": True}
    assert found.app.warnings == ["building the CPU kernels: found no C++ compiler"]
