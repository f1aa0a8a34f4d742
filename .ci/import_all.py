"""Import every module of `aimc`, and with `--train` of the pipeline, with what is installed here, for `make oldest`.

A module may only fail for want of an extra, and then the way to it must say the line that installs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

GUESTS = {"aimc.static.layer": "aihwkit"} | {
    f"aimc.ops.triton.{name}": "triton" for name in ("kernels", "noise", "reads", "writes")
}
"""Modules behind a door that asks for their package first (`aimc.static.install`, `aimc.ops.triton.check`)."""
TRAIN = ("accelerate", "datasets", "hydra", "rich", "tokenizers", "wandb")
"""What the pipeline imports, much of it only when a run comes to it."""
REPORTED = ("torch", "numpy", "scipy", "transformers", "safetensors", "matplotlib", "tokenizers", "hydra-core")


def failures(package: str) -> Iterator[str]:
    """One line for each module that fails and may not."""
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if module.name.endswith("__main__") or module.name.startswith("aimc.train"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if GUESTS.get(module.name) != error.name and "pip install" not in str(error):
                yield f"{module.name}: {error}"
        except Exception as error:
            yield f"{module.name}: {type(error).__name__}: {error}"


def silent_doors(with_train: bool) -> Iterator[str]:
    """One line for each extra that is missing here and whose door says not how to install it."""
    doors = {"aihwkit": "from aimc.static.install import require_aihwkit; require_aihwkit()"}
    if not with_train:
        doors["hydra"] = "import train"
    for package, code in doors.items():
        if importlib.util.find_spec(package) is None:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            if "pip install" not in done.stderr:
                yield f"{code}: without {package} it says not how to install it: {done.stderr.strip()}"


def main() -> None:
    with_train = "--train" in sys.argv
    versions = {name: _version(name) for name in REPORTED}
    sys.stdout.write(", ".join(f"{name} {version}" for name, version in versions.items() if version) + "\n")
    packages = ("aimc", "train") if with_train else ("aimc",)
    if with_train:
        for name in TRAIN:
            importlib.import_module(name)
    wrong = [*(line for package in packages for line in failures(package)), *silent_doors(with_train)]
    sys.exit("\n".join(wrong) or None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
