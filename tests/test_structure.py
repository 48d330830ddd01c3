"""The house rules of docs/design.md: who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

import pytest

import retnet

PACKAGE = Path(retnet.__file__).parent

# A room is a file or folder directly under retnet/. Each may import these, and what is below them.
BELOW: dict[str, set[str]] = {
    "allocator": set(),
    "config": set(),
    "included": set(),
    "ops": set(),
    "position": {"config", "ops"},
    "layers": {"position"},
    "mixers": {"layers"},
    "model": {"mixers"},
    "loss": {"ops"},
    "parallel": {"model"},
    "export": {"model"},
    "checkpoint": {"model", "included"},
    "sampling": set(),
    "generation": {"model", "sampling"},
    "decoding": {"generation"},
    "text": {"generation"},
    "processes": set(),
    "data": {"processes", "included"},
    "score": {"model", "loss", "data"},
    "windows": {"score"},
    "train": {"checkpoint", "parallel", "windows", "text", "measure", "device"},
    "tasks": {"train"},
    "measure": {"processes"},
    "device": {"ops"},
    "bench": {"generation", "measure"},
    "hf": {"checkpoint", "text", "data"},
    "serve": {"checkpoint", "text", "data", "decoding", "device"},
    "eval": {"checkpoint", "text", "windows", "decoding"},
    "reproduce": {"allocator", "tasks", "eval", "hf"},
    "commands": {"allocator", "bench", "reproduce", "text", "serve"},
    "cli": {"commands"},
    "__main__": {"cli"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in FILES if name != "retnet"]


def imported_names(name: str) -> Iterator[str]:
    """Everything that a module imports, at any depth of its code, as full dotted names."""
    is_package = FILES[name].name == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str:
    """The module of ours that a dotted name is, or is defined in: retnet.ops.x is in retnet.ops."""
    return name if name in FILES else name.rpartition(".")[0]


def imports_of_ours(name: str) -> set[str]:
    ours = (each for each in imported_names(name) if each.partition(".")[0] == "retnet")
    return {module_of(each) for each in ours} - {name}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "retnet"


def everything_below(name: str) -> set[str]:
    return BELOW[name].union(*map(everything_below, BELOW[name]))


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward(name: str) -> None:
    """A module imports its own room and those below it; from the package only the version."""
    assert room(name) in BELOW, f"retnet/{room(name)} has no place in BELOW yet: give it one"
    rooms = {room(other) for other in imports_of_ours(name)} - {room(name)}
    if "retnet.__version__" in imported_names(name):
        rooms -= {"retnet"}
    forbidden = rooms - everything_below(room(name))
    assert not forbidden, f"{name} may not import from {sorted(forbidden)}"


def test_no_circles() -> None:
    """No module imports itself by way of others, not even inside a function."""
    graph = {name: imports_of_ours(name) - {"retnet"} for name in MODULES}
    list(TopologicalSorter(graph).static_order())


def test_reference_imports_torch_only() -> None:
    """What everything is measured against depends on nothing that it could be wrong with."""
    assert {name.partition(".")[0] for name in imported_names("retnet.ops.reference")} == {"torch"}


@pytest.mark.parametrize("name", MODULES)
def test_no_buffers(name: str) -> None:
    """`.to(bfloat16)` would cast a constant buffer; a build on the meta device, leave it empty."""
    assert "register_buffer" not in FILES[name].read_text(encoding="utf-8")


def packages_loaded_by(statement: str) -> set[str]:
    """The top-level packages in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    return set(subprocess.check_output(command, cwd=PACKAGE.parent, text=True).split())


@pytest.mark.parametrize(
    "module", ["retnet", "retnet.config", "retnet.data.prepare.config", "retnet.train.config"]
)
def test_importing_is_light(module: str) -> None:
    heavy = {"torch", "numpy", "transformers", "triton", "rich", "matplotlib"}
    assert not packages_loaded_by(f"import {module}") & heavy


@pytest.mark.parametrize("module", ["retnet.model", "retnet.generation", "retnet.text"])
def test_the_model_needs_torch_alone(module: str) -> None:
    added = packages_loaded_by(f"import {module}") - packages_loaded_by("import torch")
    assert not added & {
        "transformers",
        "tokenizers",
        "triton",
        "jsonargparse",
        "rich",
        "matplotlib",
    }


@pytest.mark.parametrize("name", retnet.__all__)
def test_public_name(name: str) -> None:
    """Each is what its module defines."""
    home = import_module(retnet._MODULE_OF_NAME[name])
    assert getattr(retnet, name) is getattr(home, name)
    assert name in dir(retnet)


def test_export_lists_agree() -> None:
    """What is public is written thrice: for readers, for type checkers and for the import."""
    typed = {name for name in imported_names("retnet") if name.startswith("retnet.")}
    lazy = {f"{module}.{name}" for name, module in retnet._MODULE_OF_NAME.items()}
    assert typed == lazy
    assert sorted(retnet.__all__) == sorted(retnet._MODULE_OF_NAME)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Retnet'"):
        _ = retnet.Retnet
