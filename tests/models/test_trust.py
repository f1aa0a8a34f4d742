"""A folder from a stranger, or from a disk that rots: what is changed is named, nothing outside it is read or run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import aimc
from aimc.models import manifest, trust
from aimc.models.manifest import MANIFEST, Damaged, damage_of, require_intact, write_manifest
from tests.conftest import REPOSITORY, small_arrays, tiny_gpt2
from train.errors import RunError
from train.models import load_any

Load = Callable[[Path], object]
LOADERS: dict[str, tuple[str, Load]] = {
    "aimc, converted": ("analog", aimc.from_pretrained),
    "aimc, digital": ("digital", aimc.load_pretrained),
    "transformers, converted": ("analog", AutoModelForCausalLM.from_pretrained),
    "the pipeline, converted": ("analog", lambda folder: load_any(str(folder))),
    "the pipeline, digital": ("digital", lambda folder: load_any(str(folder))),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digital and a converted model, each with its manifest."""
    root = tmp_path_factory.mktemp("saved")
    tiny_gpt2().save_pretrained(root / "digital")
    model = tiny_gpt2()
    aimc.convert(model, small_arrays())
    model.save_pretrained(root / "analog")
    for folder in root.iterdir():
        (folder / "README.md").write_text("a card")
        write_manifest(folder)
    return root


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path, at: float = 0.7) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 8
    file.write_bytes(data)


@pytest.mark.parametrize("loader", LOADERS)
def test_an_intact_folder_loads_and_a_changed_byte_is_named(loader: str, saved: Path, tmp_path: Path) -> None:
    kind, load = LOADERS[loader]
    folder = Path(shutil.copytree(saved / kind, tmp_path / kind))
    load(folder)
    (folder / "README.md").write_text("people write on in their cards")
    load(folder)
    for name in ("model.safetensors", "config.json"):
        before = (folder / name).read_bytes()
        for damage in (flip, cut, Path.unlink):
            damage(folder / name)
            with pytest.raises((ValueError, OSError, RunError)) as caught:
                load(folder)
            assert name in str(caught.value) or damage is Path.unlink, caught.value
            assert "\n" not in str(caught.value) or loader.startswith("transformers")
            (folder / name).write_bytes(before)
    (folder / MANIFEST).write_text("{")
    with pytest.raises((Damaged, RunError), match="manifest.json cannot be read"):
        load(folder)


def test_sixty_changed_bytes_of_weights_are_all_found(saved: Path, tmp_path: Path) -> None:
    """Silently other weights were the worst of it: 36 of 160 before there was a manifest."""
    folder = Path(shutil.copytree(saved / "analog", tmp_path / "analog"))
    before = (folder / "model.safetensors").read_bytes()
    for i in range(60):
        flip(folder / "model.safetensors", i / 60)
        with pytest.raises(Damaged, match=r"model\.safetensors is not what was saved .*; a model with other weights"):
            require_intact(folder)
        (folder / "model.safetensors").write_bytes(before)
    require_intact(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_manifest_names_nothing_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"version": 1, "files": {name: {"bytes": 1, "sha256": "0"}}}))
    assert "cannot be read" in str(damage_of(tmp_path))


def test_checksums_are_cheap(tmp_path: Path) -> None:
    """About a second for 500 MB."""
    (tmp_path / "model.safetensors").write_bytes(bytes(20_000_000))
    best = min(_seconds(lambda: manifest.checksum(tmp_path / "model.safetensors")) for _ in range(5))
    assert best < 0.2


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


SHIPPED = sorted(
    path.parent for name in ("direct", "shipped") for path in (REPOSITORY / "checkpoints" / name).glob("*/config.json")
)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_what_ships_is_what_was_saved(folder: Path) -> None:
    assert (folder / MANIFEST).exists() and damage_of(folder) is None
    assert {"model.safetensors", "config.json", "tokenizer.json", "stage.json"} <= manifest._listed(folder).keys()


def with_weights_elsewhere(source: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy without its weights and manifest, and where the weights are."""
    folder = Path(shutil.copytree(source, tmp_path / source.name))
    (folder / MANIFEST).unlink()
    return folder, (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors.index.json", "sub/x.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["digital", "analog"])
def test_an_index_that_a_config_names_is_looked_at(kind: str, name: str, saved: Path, tmp_path: Path) -> None:
    folder, outside = with_weights_elsewhere(saved / kind, tmp_path)
    (folder / "sub").mkdir()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tiny_gpt2().state_dict(), str(outside))}
    (folder / name).write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
    loads: list[Load] = [aimc.load_pretrained if kind == "digital" else aimc.from_pretrained]
    loads += [AutoModelForCausalLM.from_pretrained] if kind == "analog" else []
    for load in loads:
        with pytest.raises((ValueError, OSError), match="which is no file beside it|is no file beside it"):
            load(folder)


def test_a_subfolder_is_looked_at_as_the_folder_is(saved: Path, tmp_path: Path) -> None:
    for kind, load in (("digital", aimc.load_pretrained), ("analog", aimc.from_pretrained)):
        shutil.copytree(saved / kind, tmp_path / kind / "m")
        load(tmp_path / kind, subfolder="m")
        flip(tmp_path / kind / "m" / "model.safetensors")
        with pytest.raises(Damaged, match="model.safetensors"):
            load(tmp_path / kind, subfolder="m")


def test_an_adapter_beside_a_model_is_not_loaded_into_it(saved: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = Path(shutil.copytree(saved / "digital", tmp_path / "digital"))
    adapter = peft.get_peft_model(tiny_gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapter.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"an adapter lies beside the model.*merge_and_unload"):
        aimc.load_pretrained(folder)


def test_a_config_of_impossible_sizes_is_told_before_anything_is_made_of_them(tmp_path: Path) -> None:
    """Some configs list their layers."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_hidden_layers": 10**30}))
    with pytest.raises(ValueError, match=r"num_hidden_layers=1e\+30: no model has"):
        aimc.load_pretrained(tmp_path)


def test_weights_of_a_variant(saved: Path, tmp_path: Path) -> None:
    model = aimc.from_pretrained(saved / "analog")
    model.save_pretrained(tmp_path, variant="fp16")
    again = aimc.from_pretrained(tmp_path, variant="fp16")
    assert all(x.equal(again.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("shard", ["../outside.safetensors", "{outside}", "a/b.safetensors", "..", "c:\\x.safetensors"])
@pytest.mark.parametrize("kind", ["digital", "analog"])
def test_an_index_names_files_beside_it_only(kind: str, shard: str, saved: Path, tmp_path: Path) -> None:
    folder, outside = with_weights_elsewhere(saved / kind, tmp_path)
    state = tiny_gpt2().state_dict()
    index = {"metadata": {}, "weight_map": {name: shard.replace("{outside}", str(outside)) for name in state}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loads: list[Load] = [aimc.load_pretrained if kind == "digital" else aimc.from_pretrained]
    if kind == "analog":
        loads.append(AutoModelForCausalLM.from_pretrained)
    for load in loads:
        with pytest.raises((ValueError, OSError)) as caught:
            load(folder)
        assert load is AutoModelForCausalLM.from_pretrained or "which is no file beside it" in str(caught.value)


@pytest.mark.parametrize("kind", ["digital", "analog"])
def test_code_that_a_config_names_is_not_run_and_that_is_said(kind: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / kind, tmp_path / kind))
    (folder / MANIFEST).unlink()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\nclass EvilConfig: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    load: Load = aimc.load_pretrained if kind == "digital" else aimc.from_pretrained
    with pytest.warns(UserWarning, match=r"names code of its own \(auto_map: .*\); it is ignored"):
        assert isinstance(load(folder), GPT2LMHeadModel)
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="evil|trust_remote_code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


ODD: dict[str, Any] = {
    "aimc.chip_seed": ["abc", 1.5, [1]],
    "aimc.skip_layers": ["ab", [99], [0, 1], [None]],
    "aimc.cell": [None, 3, []],
    "aimc.array.window": ["32", 40.0, None, True],
    "aimc.cell.coefficients": ["12", None, [None, 1]],
    "aimc.cell.supply_v": [True, "1", float("nan")],
    "aimc.noise": [None, 7],
    "aimc.version": [None, "6", 99],
    "n_layer": ["x", None, 10**30, -1],
    "n_head": [0, 3],
    "n_embd": [-4],
    "activation_function": ["nope"],
    "model_type": [None, "nope"],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in ODD.items() for value in values])
def test_an_odd_value_in_a_config_is_told_with_the_file(place: str, value: object, saved: Path, tmp_path: Path) -> None:
    for kind, load in (("analog", aimc.from_pretrained), ("digital", aimc.load_pretrained)):
        if kind == "digital" and place.startswith("aimc"):
            continue
        folder = Path(shutil.copytree(saved / kind, tmp_path / kind))
        (folder / MANIFEST).unlink()
        config = json.loads((folder / "config.json").read_text())
        *above, last = place.split(".")
        node = config
        for name in above:
            node = node[name]
        node[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="config.json"):
            load(folder)
        with pytest.raises(RunError, match="config.json"):
            load_any(str(folder))


def test_weights_that_have_no_place_are_told(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "digital", tmp_path / "digital"))
    (folder / MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 1}))
    with pytest.warns(UserWarning, match="11 weights of the file have no place in the model"):
        aimc.load_pretrained(folder)


def test_large_numbers_that_models_do_have_are_taken() -> None:
    sizes = {"vocab_size": 262_144, "max_position_embeddings": 10_485_760, "pad_token_id": -1}
    trust.require_possible_sizes(sizes, "x")
