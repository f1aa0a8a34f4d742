"""The house: packages rank by rank, no cycles inside a package, and `import aimc` is light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RANKS = {
    "aimc.hardware": 1,
    "aimc.ops": 2,
    "aimc.circuit": 2,
    "aimc.nn": 3,
    "aimc.models": 4,
    "aimc.calibrate": 5,
    "aimc.static": 5,
    "aimc.evaluate": 6,
    "aimc.plot": 7,
    "aimc": 8,
    "train": 9,
}
"""A package may import those of a lower rank, and itself."""
FILES = sorted([*(REPOSITORY / "aimc").rglob("*.py"), *(REPOSITORY / "train").rglob("*.py")])
LONGEST_FILE, LONGEST_FUNCTION = 400, 75


def path_of(file: Path) -> str:
    return file.relative_to(REPOSITORY).as_posix()


def module_of(file: Path) -> str:
    return path_of(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def package_of(module: str) -> str:
    """The ranked package that a module belongs to."""
    return max((name for name in RANKS if module == name or module.startswith(f"{name}.")), key=len)


def imports_of(file: Path, module: str) -> Iterator[str]:
    """Modules of the house that a file imports when it runs, wherever in it; not what only a type checker reads."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {id(node) for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ("aimc", "train"))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            if base.split(".")[0] in ("aimc", "train"):
                yield from (_module_named(base, alias.name) for alias in node.names)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _module_named(base: str, name: str) -> str:
    """`from aimc.hardware import presets` imports a module, `from aimc.hardware import Hardware` a name of one."""
    folder = REPOSITORY / base.replace(".", "/")
    return f"{base}.{name}" if (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists() else base


def upward_imports(file: Path, module: str) -> list[str]:
    own = package_of(module)
    return [
        name for name in imports_of(file, module) if package_of(name) != own and RANKS[package_of(name)] >= RANKS[own]
    ]


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_imports_run_downward(file: Path) -> None:
    assert upward_imports(file, module_of(file)) == []


@pytest.mark.parametrize("package", RANKS)
def test_no_cycles_inside_a_package(package: str) -> None:
    modules = {module_of(file): file for file in FILES if package_of(module_of(file)) == package}
    graph = {name: {used for used in imports_of(file, name) if used in modules} for name, file in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_tests_see_what_they_are_for(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from aimc.calibrate import match_statistics\n")
    assert upward_imports(file, "aimc.ops.attention") == ["aimc.calibrate"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    file.write_text("from . import report\nfrom .files import write_json\n")
    assert list(imports_of(file, "train.pipeline")) == ["train.report", "train.files"]


def test_only_the_face_is_loose_at_the_top() -> None:
    assert [file.name for file in (REPOSITORY / "aimc").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("package", [name for name in RANKS if name != "aimc"])
def test_every_package_says_what_it_is(package: str) -> None:
    doc = ast.get_docstring(ast.parse((REPOSITORY / package.replace(".", "/") / "__init__.py").read_text())) or ""
    assert len(doc.splitlines()) >= 3 and "import" in doc, (
        f"{package} says not what lives there, who may call it, what it imports"
    )


def test_import_aimc_is_light() -> None:
    heavy = ("transformers", "hydra", "wandb", "triton", "matplotlib", "aihwkit", "numba", "torch")
    code = f"import sys, aimc; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_operator_needs_no_transformers() -> None:
    code = "import sys, aimc; aimc.gain_cell_attention; aimc.presets.typical(); print('transformers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_files_and_functions_are_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = [
                part for part in node.body if not isinstance(part, ast.Expr) or not isinstance(part.value, ast.Constant)
            ]
            n_lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert n_lines <= LONGEST_FUNCTION, f"{node.name} has {n_lines} lines"


def test_every_public_name_exists() -> None:
    import aimc

    for name in aimc.__all__:
        assert getattr(aimc, name) is not None
    assert callable(aimc.convert) and callable(aimc.perplexity)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        aimc.nonsense  # noqa: B018
