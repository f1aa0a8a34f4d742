"""The house: imports run strictly downward, and `import aimc` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FLOORS = [
    ("aimc.config_checks", -2),
    ("aimc.converter", -1),
    ("aimc.nonideality", -1),
    ("aimc.config", 0),
    ("aimc.presets", 0.5),  # presets are made of configs
    ("aimc.ops.quantize", 1),
    ("aimc.ops.cell", 1),
    ("aimc.ops.leakage", 1),
    ("aimc.ops.noise", 1),
    ("aimc.circuit.errors", 0.6),
    ("aimc.circuit.transistor", 0.7),
    ("aimc.circuit.regression", 0.8),
    ("aimc.circuit.curves", 0.8),
    ("aimc.circuit.cell", 0.8),
    ("aimc.circuit.extract", 0.8),
    ("aimc.circuit.retention", 0.8),
    ("aimc.circuit.fit", 0.9),
    ("aimc.circuit.surface", 1),
    ("aimc.circuit.storage", 1),
    ("aimc.circuit.technology", 1),
    ("aimc.circuit.budget", 1.1),
    ("aimc.circuit.hardware", 1.2),
    ("aimc.circuit.cell_cost", 1.3),
    ("aimc.circuit.published", 1),
    ("aimc.circuit.model_shape", 1),
    ("aimc.circuit.cost_report", 1),
    ("aimc.circuit.cost_parameters", 1.1),
    ("aimc.circuit.cost", 1.2),
    ("aimc.circuit.model_cost", 1.3),
    ("aimc.circuit.cost_sensitivity", 1.4),
    ("aimc.circuit.chip_cost", 1.4),
    ("aimc.circuit.static_cost", 1),
    ("aimc.circuit", 1.5),
    ("aimc.ops.scaling", 1.5),
    ("aimc.ops.packing", 1.5),
    ("aimc.ops.reads", 1.5),
    ("aimc.ops.moments", 1.5),
    ("aimc.ops.array", 1.8),
    ("aimc.ops.checks", 2),
    ("aimc.ops.heads", 2),
    ("aimc.ops.protection", 2.2),
    ("aimc.ops.activation", 2.2),
    ("aimc.ops.tiles", 2.4),
    ("aimc.ops.attention_blocked", 2.5),
    ("aimc.ops.call", 2.2),
    ("aimc.ops.triton_cell", 2.3),
    ("aimc.ops.triton_kernels", 2.4),
    ("aimc.ops.attention_triton", 2.5),
    ("aimc.ops.triton_engine", 2.6),
    ("aimc.ops.dispatch", 2.7),
    ("aimc.ops.fused", 2.7),
    ("aimc.ops.attention", 3),
    ("aimc.ops.kv_arrays", 2.5),
    ("aimc.ops.decode", 3.2),
    ("aimc.ops", 3.3),
    ("aimc.nn.scaler", 3.5),
    ("aimc.nn", 4),
    ("aimc.nn.attention", 3.6),
    ("aimc.nn.cache", 3.8),
    ("aimc.static.install", 0.5),
    ("aimc.static.presets", 0.6),
    ("aimc.static.encoding", 0.6),
    ("aimc.static.config", 0.7),
    ("aimc.nn.static", 3.6),
    ("aimc.static.tiles", 4.5),
    ("aimc.static.layers", 4.6),
    ("aimc.hf", 5.0),
    ("aimc.llama2c", 5.0),
    ("aimc.families", 5.0),
    ("aimc.conversion", 5.1),
    ("aimc.checkpoint", 5.2),
    ("aimc.record", 5.2),
    ("aimc.calibrate", 5.3),
    ("aimc.ranges", 5.3),
    ("aimc.evaluate", 5.3),
    ("aimc.design", 1.6),
    ("aimc.explore", 5.4),
    ("aimc.static.aging", 5.4),
    ("aimc.static.budget", 5.45),
    ("aimc.plot_chip", 5.5),
    ("aimc.static", 5.6),
    ("aimc.plot", 5.4),
    ("aimc.plot_circuit", 5.5),
    ("aimc.plot_attention", 5.5),
    ("aimc.plot_cost", 5.5),
    ("aimc", 6),
    ("train", 7),
]
FILES = sorted([*(REPOSITORY / "aimc").rglob("*.py"), *(REPOSITORY / "train").rglob("*.py")])


def floor_of(module: str) -> float:
    matches = [(len(prefix), floor) for prefix, floor in FLOORS if module == prefix or module.startswith(prefix + ".")]
    assert matches, f"{module} stands on no floor: give it one in {Path(__file__).name}"
    return max(matches)[1]


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = node.module
            # `from aimc import presets` imports the submodule, not the roof
            subs = {f"{base}.{alias.name}" for alias in node.names if (REPOSITORY / base.replace(".", "/") / f"{alias.name}.py").exists()}
            found |= subs or {base}
    return {name for name in found if name.split(".")[0] in ("aimc", "train")}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(REPOSITORY).as_posix())
def test_imports_run_downward(file: Path) -> None:
    module = file.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for imported in imports_of(file):
        same_package_above_the_house = module.startswith("train") and imported.startswith("train")
        if same_package_above_the_house:
            continue
        assert floor_of(imported) < floor_of(module), f"{module} imports {imported}, which is not below it"


def test_the_test_sees_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from aimc.calibrate import match_statistics\n")
    assert imports_of(file) == {"aimc.calibrate"}
    assert floor_of("aimc.calibrate") > floor_of("aimc.ops.attention")


def test_import_aimc_is_light() -> None:
    heavy = ("transformers", "hydra", "wandb", "triton", "matplotlib", "aihwkit", "torch")
    code = f"import sys, aimc; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_operator_needs_no_transformers() -> None:
    code = "import sys, aimc; aimc.gain_cell_attention; aimc.presets.typical(); print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(REPOSITORY).as_posix())
def test_files_are_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


def test_every_public_name_exists() -> None:
    import aimc

    for name in aimc.__all__:
        assert getattr(aimc, name) is not None
    assert callable(aimc.convert) and callable(aimc.perplexity)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        aimc.nonsense  # noqa: B018
