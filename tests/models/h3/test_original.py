"""Files as H3's authors published them: names of their code, made at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from aimc.models.h3 import SIZES, H3Config, H3ForCausalLM, load_original, published
from aimc.models.h3.original import key_mapping, renamed
from tests.models.h3.test_model import TINY, ids

CONFIG = H3Config(**TINY | {"rotary_dim": 4})


def published_layout(config: H3Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of github.com/HazyResearch/H3's `SSMLMHeadModel`, as checkpoints have them: shifted norms."""
    width, inner, n = config.hidden_size, config.intermediate_size, config.state_size
    assert inner is not None
    layout: dict[str, tuple[int, ...]] = {"backbone.embeddings.word_embeddings.weight": (config.vocab_size, width)}
    layout |= {f"backbone.ln_0.{part}": (width,) for part in ("weight", "bias")}
    for number in range(config.num_hidden_layers):
        mixer = f"backbone.layers.{number}.mixer"
        shapes: dict[str, tuple[int, ...]] = {}
        if number in config.attention_layers:
            shapes |= {"Wqkv": (3 * width, width), "out_proj": (width, width)}
            if config.rotary_dim:
                layout[f"{mixer}.rotary_emb.inv_freq"] = (config.rotary_dim // 2,)
        else:
            shapes |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "output_linear"), (width, width))
            layout |= {f"{mixer}.ssm_k_D": (width,), f"{mixer}.D": (width,)}
            layout |= {f"{mixer}.ssm_k_kernel.kernel.B": (width, n), f"{mixer}.ssm_k_kernel.kernel.C": (1, width, n)}
            layout |= {f"{mixer}.kernel.kernel.{name}": (width, n // 2) for name in ("inv_A_real", "A_imag")}
            layout |= {
                f"{mixer}.kernel.kernel.B": (width, n // 2, 2),
                f"{mixer}.kernel.kernel.C": (1, width, n // 2, 2),
            }
            layout[f"{mixer}.kernel.kernel.log_dt"] = (width,)
        for name, (out, into) in shapes.items():
            layout |= {f"{mixer}.{name}.weight": (out, into), f"{mixer}.{name}.bias": (out,)}
        mlp = mixer.replace("mixer", "mlp")
        layout |= {f"{mlp}.fc1.weight": (inner, width), f"{mlp}.fc1.bias": (inner,)}
        layout |= {f"{mlp}.fc2.weight": (width, inner), f"{mlp}.fc2.bias": (width,)}
        for norm in ("norm1", "norm2"):
            layout |= {mixer.replace("mixer", f"{norm}.{part}"): (width,) for part in ("weight", "bias")}
    return layout | {"lm_head.weight": (config.vocab_size, width)}


def random_state(config: H3Config = CONFIG) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in published_layout(config).items()}
    state["lm_head.weight"] = state["backbone.embeddings.word_embeddings.weight"].clone()
    return state


def lightning(folder: Path, state: dict[str, Tensor]) -> Path:
    """The file that PyTorch Lightning makes of it, with weights of other things."""
    content: dict[str, Any] = {"pytorch-lightning_version": "1.8.6", "epoch": 3}
    content["state_dict"] = {f"model.{name}": x for name, x in state.items()} | {"metric.total": torch.zeros(1)}
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


def test_a_lightning_file_loads_and_saving_gives_the_new_layout(tmp_path: Path) -> None:
    state = random_state()
    loaded = load_original(lightning(tmp_path, state), CONFIG)
    weights = loaded.state_dict()
    for number in range(3):
        before = f"backbone.layers.{number - 1}.norm2.weight" if number else "backbone.ln_0.weight"
        assert weights[f"backbone.layers.{number}.norm1.weight"].equal(state[before])
        shifted = state[f"backbone.layers.{number}.norm1.weight"]
        assert weights[f"backbone.layers.{number}.norm2.weight"].equal(shifted)
    assert weights["backbone.ln_f.bias"].equal(state["backbone.layers.2.norm2.bias"])
    mixer = "backbone.layers.0.mixer"
    assert weights[f"{mixer}.diagonal.D"].equal(state[f"{mixer}.D"])
    assert weights[f"{mixer}.shift.D"].equal(state[f"{mixer}.ssm_k_D"])
    assert weights[f"{mixer}.diagonal.C"].equal(state[f"{mixer}.kernel.kernel.C"])
    assert weights[f"{mixer}.shift.C"].equal(state[f"{mixer}.ssm_k_kernel.kernel.C"])
    loaded.save_pretrained(tmp_path / "new")
    with safe_open(tmp_path / "new" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(weights) - {"lm_head.weight"}  # tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert again.state_dict().keys() == weights.keys()
    assert all(again.state_dict()[name].equal(weights[name]) for name in weights)
    with torch.no_grad():
        assert again(ids()).logits.equal(loaded.eval()(ids()).logits)


def test_later_and_earlier_names_load_too(tmp_path: Path) -> None:
    expected = load_original(lightning(tmp_path, random_state()), CONFIG).state_dict()
    ours = {
        f"backbone.layers.{i}.{norm}.{part}"
        for i in range(3)
        for norm in ("norm1", "norm2")
        for part in ("weight", "bias")
    }
    later = {name: x for name, x in random_state().items() if "norm" not in name and "ln_0" not in name}
    later |= {name: expected[name] for name in (*ours, "backbone.ln_f.weight", "backbone.ln_f.bias")}
    torch.save(later, tmp_path / "later.pt")
    earlier = {
        name.replace("backbone.embeddings.word_embeddings.", "embedding.").replace("backbone.", "s4seq.encoder."): x
        for name, x in random_state().items()
    }
    for file in (tmp_path / "later.pt", lightning(tmp_path, earlier)):
        found = load_original(file, CONFIG).state_dict()
        assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_published_layout_is_the_model_here_under_other_names(size: str) -> None:
    config = published(size)
    layout = published_layout(config)
    mapping = key_mapping(dict.fromkeys(layout, torch.empty(0)), config.num_hidden_layers)
    names = renamed((name for name in layout if "rotary_emb" not in name), mapping)
    here = {new: layout[old] for old, new in names.items()}
    with torch.device("meta"):
        model = H3ForCausalLM(config)
    assert here == {name: tuple(x.shape) for name, x in model.state_dict().items()}
    named = float(size[:-1]) * 1e6 if size.endswith("m") else float(size.partition("b")[0]) * 1e9
    assert sum(x.numel() for x in model.parameters()) == pytest.approx(named, rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, r"backbone\.\S+ is \(64, 16\) in the file and \(64, 32\) in the model"),
        ({"attention_layers": [2]}, r"backbone.layers.1.mixer.diagonal.A_imag is not in the file \(.* such weights\)"),
        ({"num_hidden_layers": 2}, r"backbone.layers.2.\S+ is not in the model"),
        ({"state_size": 16}, r"mixer.diagonal.A_imag is \(16, 4\) in the file and \(16, 8\) in the model"),
    ],
)
def test_a_file_of_another_model_is_named_by_weight_and_shape(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = lightning(tmp_path, random_state())
    with pytest.raises(ValueError, match=message) as told:
        load_original(file, H3Config(**TINY | change))
    assert str(told.value).startswith(str(file)) and "\n" not in str(told.value)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_only_tensors_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.pt"
    torch.save({"state_dict": random_state(), "hyper_parameters": _Code()}, file)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        load_original(file, CONFIG)
    assert "run" not in capsys.readouterr().out
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        load_original(file, CONFIG)
    torch.save({"state_dict": {"weight": 3}}, file)
    with pytest.raises(ValueError, match="no state dict of tensors"):
        load_original(file, CONFIG)
    with pytest.raises(FileNotFoundError, match="no such file; give the model.pt"):
        load_original(tmp_path / "nowhere.pt", CONFIG)
