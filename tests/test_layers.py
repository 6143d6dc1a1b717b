"""Data flows one way: a file imports from its own wing and those above it, and heavy libraries stay inside."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import evalkit

PACKAGE = Path(evalkit.__file__).parent
WINGS = ("words", "benchmarks", "models", "records", "runs", "train", "report", "study", "cli", "api")
HEAVY = {
    "torch",
    "transformers",
    "vllm",
    "datasets",
    "pandas",
    "scipy",
    "statsmodels",
    "matplotlib",
    "httpx2",
    "pyarrow",
    "ray",
}


def wing(parts: tuple[str, ...]) -> str:
    """Return the wing of a module given by its path inside the package."""
    if parts[0] in WINGS:
        return parts[0]
    return {"__main__": "cli", "__init__": "api"}.get(parts[0], "words")


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports when it is imported itself (not inside functions or for type checking only)."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def all_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "evalkit")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "_tasks" not in path.parts]


def test_every_file_imports_only_from_its_own_wing_and_those_above():
    for path in modules():
        own = wing(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in all_imports(ast.parse(path.read_text())):
            if name.startswith("evalkit."):
                theirs = wing(tuple(name.split(".")[1:]))
                assert WINGS.index(theirs) <= WINGS.index(own), f"{path.name} ({own}) imports {name} ({theirs})"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_files(tree: ast.Module, files: set[str]) -> set[str]:
    """Return the files of the package that a file imports, wherever in it, for type checking only as well."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & files
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names} & files
            found |= named or ({node.module} & files)
    return found


def test_no_two_files_import_each_other_not_even_by_a_detour():
    files = {module_name(path): ast.parse(path.read_text()) for path in modules()}
    # Of the package itself files take the version alone; the interface behind it is loaded when a user asks for it.
    inside = files.keys() - {"evalkit"}
    graph = {name: imported_files(tree, inside) - {name} for name, tree in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_module_imports_a_heavy_library_when_it_is_imported():
    for path in modules():
        heavy = {name.split(".")[0] for name in top_level_imports(ast.parse(path.read_text()))} & HEAVY
        assert not heavy, f"{path.relative_to(PACKAGE)} imports {heavy} at the top"


def test_no_file_of_the_package_uses_the_interface_that_is_made_for_users():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "evalkit":
                assert not {alias.name for alias in node.names} & set(evalkit.__all__) - {"__version__"}, path


@pytest.mark.parametrize("module", ["evalkit", "evalkit.cli.commands"])
def test_importing_the_package_and_showing_help_load_no_numerical_library(module):
    code = f"import sys, {module}; print([m for m in ('numpy', 'pandas', 'torch', 'scipy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
