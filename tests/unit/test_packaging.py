"""What a user installs: a wheel, built from an sdist as an index would build it, with the object and only k8snet in it.

The network is not needed: the build's requirements come from the environment that runs the tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
OBJECT = "k8snet/objects/k8snet.bpf.o"


def run(command: Sequence[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=directory, env=environment, timeout=100
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    directory = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(directory)], PROJECT)
    [archive] = directory.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the unpacked sdist, in a place where nothing else of the checkout can be seen."""
    directory = tmp_path_factory.mktemp("wheel")
    shutil.unpack_archive(sdist, directory)
    [source] = [path for path in directory.iterdir() if path.is_dir()]
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)], source)
    [built] = directory.glob("*.whl")
    return built


def tracked_modules() -> set[str]:
    return {str(path.relative_to(PROJECT / "tracer")) for path in (PROJECT / "tracer/k8snet").rglob("*.py")}


def test_the_wheel_holds_every_module_and_the_object(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        magic = archive.read(OBJECT)[:4] if OBJECT in names else b""
    assert tracked_modules() <= names
    assert magic == b"\x7fELF", f"no {OBJECT} in the wheel: {sorted(names)}"


def test_the_wheel_holds_no_c_sources_and_takes_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".c", ".h", ".d")) or "test" in name]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"k8snet"}


def test_the_wheel_names_the_three_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    assert names >= {"LICENSE", "LICENSE.GPL-2.0", "LICENSE.BSD-2-Clause"}


def test_the_build_directory_cannot_be_read_in_the_object(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert str(wheel.parent).encode() not in archive.read(OBJECT)


def test_the_sdist_holds_what_a_build_needs_and_no_litter(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"Makefile", "bpf/build_hook.py", "bpf/vmlinux.h", "probes/drop.bpf.c", "LICENSE"} <= names
    assert not {name for name in names if name.endswith((".o", ".pyc")) or name.startswith((".venv", "build/"))}


def test_the_installed_command_speaks(wheel: Path, tmp_path: Path) -> None:
    """The wheel's own entry point and code, not the checkout's: it is unpacked where only this test looks."""
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run([*command, "--disable-pip-version-check", "--target", str(target), str(wheel)], tmp_path)
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"}
    told = run([sys.executable, "-c", "import k8snet; print(k8snet.__file__)"], tmp_path, environment)
    assert told.startswith(str(target))
    helped = run([str(target / "bin/k8snet"), "--help"], tmp_path, environment)
    for word in ("trace", "map", "check", "lab", "cleanup"):
        assert word in helped
    assert "kubectl k8snet" in run([str(target / "bin/kubectl-k8snet"), "--help"], tmp_path, environment)


@pytest.mark.parametrize("directory", ["bpf", "probes", "tracer/k8snet", "tests/unit", "tests/live", "tests/vm", ".ci"])
def test_a_newcomer_finds_the_directory_that_the_design_names(directory: str) -> None:
    assert any((PROJECT / directory).iterdir())
