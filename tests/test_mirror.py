"""Each file finds its twin by name: modules and tests, fuzz targets and corpora, the two locks."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("capi_core", "capi_trio", "capi_admin")

# Modules without a test file of their own, each with the reason. May only shrink.
UNTESTED: Final[Mapping[str, str]] = {}


def only_declares(source: str) -> bool:
    """Whether a module holds nothing but a docstring, imports and dunder assignments."""
    for node in ast.parse(source).body:
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Import() | ast.ImportFrom():
                continue
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("__"):
                continue
            case _:
                return False
    return True


def twin(module: Path) -> Path:
    """The test file that belongs to a module: capi_core/sse.py has tests/capi_core/test_sse.py."""
    return Path("tests") / module.parent / f"test_{module.stem.strip('_')}.py"


def source_files() -> Iterator[Path]:
    """Each module that needs a test file, relative to the root."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not (path.stem in ("__init__", "__main__") and only_declares(path.read_text())):
                yield path.relative_to(ROOT)


def pins(lock: str) -> dict[str, str]:
    """What a lock file pins: the version of each package, by name."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_each_module_has_its_test_file() -> None:
    """Or its reason in `UNTESTED`, where no entry stays that is no longer needed."""
    missing = [str(twin(module)) for module in source_files() if not (ROOT / twin(module)).is_file()]
    assert sorted(missing) == sorted(str(twin(Path(module))) for module in UNTESTED)


def test_each_test_file_has_its_module() -> None:
    twins = {twin(module) for module in source_files()}
    folders = (ROOT / "tests" / package for package in PACKAGES)
    tests = (path.relative_to(ROOT) for folder in folders for path in folder.rglob("test_*.py"))
    assert sorted(str(test) for test in tests if test not in twins) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_ships_its_types(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_each_fuzz_target_names_a_core_module() -> None:
    """Or a package of a protocol, perhaps with the half of it that it is about."""
    core = {path.stem for path in (ROOT / "capi_core").rglob("*") if path.is_dir() or path.suffix == ".py"}
    targets = {path.stem.removeprefix("fuzz_") for path in (ROOT / "fuzz").glob("fuzz_*.py")}
    assert {target.removesuffix("_translate").removesuffix("_stream") for target in targets} <= core


def test_fuzz_targets_and_corpora_belong_together() -> None:
    targets = {path.stem.removeprefix("fuzz_") for path in (ROOT / "fuzz").glob("fuzz_*.py")}
    corpora = {path.parent.name for path in (ROOT / "fuzz" / "corpus").glob("*/*") if path.is_file()}
    assert corpora == targets


def test_the_dev_lock_holds_the_pins_of_the_runtime_lock() -> None:
    """So that what is tested is what runs."""
    runtime = pins("requirements.lock")
    assert runtime
    dev = pins("requirements-dev.lock")
    assert {name: dev.get(name) for name in runtime} == runtime


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_by_hash_and_names_no_index(lock: str) -> None:
    """Where packages come from is the machine's own setting; what they must be is ours."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text().strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|^\s*(-i|-f|--[a-z-]*(index|find))", (ROOT / lock).read_text(), re.MULTILINE)
