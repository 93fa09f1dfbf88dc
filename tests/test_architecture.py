"""The rooms of the house and who may import whom."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pbp_search

PACKAGE = Path(pbp_search.__file__).parent
STUDIES = PACKAGE.parent / "studies"

# From the ground up. A room imports rooms on lower floors, or itself.
FLOORS = (
    ("errors",),
    ("settings",),
    ("dendrites", "front", "home", "databases"),
    ("training",),
    ("tracking", "export", "tasks"),
    ("search",),
    ("report",),
    ("compare",),
    ("cli",),
    ("studies", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

FORBIDDEN = {
    "errors": {"torch", "optuna", "mlflow", "numpy"},
    "front": {"torch", "optuna", "mlflow"},
    "dendrites": {"optuna", "mlflow"},
    "training": {"optuna", "mlflow"},
    "tracking": {"optuna"},
    "export": {"optuna", "mlflow"},
    "tasks": {"optuna", "mlflow"},
    "search": {"click", "rich", "plotly", "matplotlib"},
    "report": {"click"},
}


def source_files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *STUDIES.rglob("*.py")])


def shown(file: Path) -> str:
    return str(file.relative_to(PACKAGE.parent))


def module_of(file: Path) -> str:
    parts = list(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a module of the package; None for the package itself and for other libraries."""
    parts = module.split(".")
    if parts[0] == "studies":
        return "studies"
    return parts[1] if parts[0] == "pbp_search" and len(parts) > 1 else None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST, types_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if types_too or not is_type_checking(node):
            yield node
            yield from nodes(node, types_too)


def imports(file: Path, types_too: bool = True) -> set[str]:
    """The modules that a file imports, anywhere in it. A name of the package's own stands for the room it is from."""
    found: set[str] = set()
    for node in nodes(ast.parse(file.read_text()), types_too):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(file)} has a relative import"
            assert node.module is not None
            for alias in node.names:
                found |= imported_by(node.module, alias.name)
    return found


def imported_by(module: str, name: str) -> set[str]:
    if module == "pbp_search" and name in pbp_search._HOMES:
        return {f"pbp_search.{pbp_search._HOMES[name]}"}
    path = PACKAGE.parent / module.replace(".", "/") / name
    if module.split(".")[0] == "pbp_search" and (path.is_dir() or path.with_suffix(".py").is_file()):
        return {f"{module}.{name}"}
    return {module}


def test_every_file_has_a_floor() -> None:
    rooms = {room_of(module_of(file)) for file in source_files()}
    assert rooms == {None, *FLOOR_OF}


@pytest.mark.parametrize("file", source_files(), ids=shown)
def test_a_room_imports_lower_rooms_only(file: Path) -> None:
    room = room_of(module_of(file))
    if room is None:
        assert file == PACKAGE / "__init__.py"
        assert not {found for found in imports(file, types_too=False) if found.startswith("pbp_search")}
        return
    for found in imports(file):
        target = room_of(found)
        if found == "pbp_search":
            pytest.fail(f"{shown(file)} imports the package as a whole")
        elif target is not None and target != room:
            assert FLOOR_OF[target] < FLOOR_OF[room], f"{shown(file)} ({room}) imports {found} ({target})"


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {module_of(file) for file in source_files()}
    # Importing a.b runs a/__init__.py too, but that is how packages re-export: only what is named counts.
    graph = {
        module_of(file): {found for found in imports(file, types_too=False) if found in modules}
        for file in source_files()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == modules


@pytest.mark.parametrize("file", source_files(), ids=shown)
def test_a_room_knows_its_libraries_only(file: Path) -> None:
    libraries = {found.split(".")[0] for found in imports(file)}
    assert not libraries & FORBIDDEN.get(room_of(module_of(file)) or "errors", set())
    if shown(file) != "pbp_search/tasks/published.py":  # whose reader of pickles makes nothing but arrays
        assert not libraries & {"pickle", "dill", "shelve", "marshal"}
    if "cloudpickle" in libraries:
        assert room_of(module_of(file)) == "tasks"


@pytest.mark.parametrize("file", source_files(), ids=shown)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 400


def loaded_by(*modules: str) -> dict[str, set[str]]:
    """Which libraries are loaded after importing one module after the other in a process of its own."""
    lines = ["import importlib, json, sys", "loaded = {}"]
    for module in modules:
        lines.append(f"importlib.import_module({module!r})")
        lines.append(f"loaded[{module!r}] = sorted({{name.split('.')[0] for name in sys.modules}})")
    lines.append("print(json.dumps(loaded))")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return {module: set(libraries) for module, libraries in json.loads(done.stdout).items()}


def test_heavy_libraries_load_late() -> None:
    loaded = loaded_by("pbp_search", "pbp_search.cli", "pbp_search.front", "pbp_search.training")
    heavy = {"torch", "optuna", "mlflow", "sklearn", "onnx", "onnxruntime", "plotly", "matplotlib", "numpy", "rich"}
    assert not loaded["pbp_search"] & heavy
    assert not loaded["pbp_search.cli"] & heavy
    assert not loaded["pbp_search.front"] & {"torch", "optuna", "mlflow"}
    assert "torch" in loaded["pbp_search.training"]
    assert not loaded["pbp_search.training"] & {"optuna", "mlflow"}


@pytest.mark.parametrize("name", pbp_search.__all__)
def test_public_names_resolve(name: str) -> None:
    value: Any = getattr(pbp_search, name)
    assert value.__name__ == name
    room = importlib.import_module(f"pbp_search.{pbp_search._HOMES[name]}")
    assert getattr(room, name) is value
    assert name in getattr(room, "__all__", [name])


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if is_type_checking(node)]
    seen = {
        alias.name: node.module for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {name: f"pbp_search.{room}" for name, room in pbp_search._HOMES.items()}
    assert sorted(seen) == pbp_search.__all__
    assert set(pbp_search.__all__) <= set(dir(pbp_search))


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/__init__.py")), ids=shown)
def test_rooms_export_names_that_are_there(file: Path) -> None:
    room = importlib.import_module(module_of(file))
    if file.parent.name != "tasks":  # its names are its own, not re-exported
        assert room.__all__ == sorted(room.__all__)
        assert all(hasattr(room, name) for name in room.__all__)
    assert room.__doc__
