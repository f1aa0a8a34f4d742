"""H3 models as their authors published them (huggingface.co/danfu09/H3-125M and sisters): PyTorch Lightning's files.

Their layers were cut elsewhere: each norm stood behind a branch, and now stands before the next one. So layer l's
`norm2` was layer l's `norm1`, layer l's `norm1` was layer l − 1's `norm2`, and `ln_0` and `ln_f` are at the ends
(`SSMLMHeadModel.load_state_dict` in github.com/HazyResearch/H3, src/models/ssm_seq.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import WeightRenaming

from aimc.models.h3.config import H3Config
from aimc.models.h3.model import H3ForCausalLM

_PREFIX = "model."
"""Of the model's weights in a file of PyTorch Lightning."""
_EARLIER = {
    r"^s4seq\.encoder\.": "backbone.",
    r"^embedding\.": "backbone.embeddings.word_embeddings.",
    r"^backbone\.norm\.": "backbone.ln_f.",
}
"""Names of still older files."""
_NAMES = {
    r"^backbone\.embeddings\.word_embeddings\.": "backbone.embed_tokens.",
    r"\.mixer\.ssm_k_kernel\.kernel\.": ".mixer.shift.",
    r"\.mixer\.ssm_k_D": ".mixer.shift.D",
    r"\.mixer\.kernel\.kernel\.": ".mixer.diagonal.",
    r"\.mixer\.D": ".mixer.diagonal.D",
}


def load_original(file: str | Path, config: H3Config, *, dtype: torch.dtype = torch.float32) -> H3ForCausalLM:
    """A published H3 model, ready for :func:`aimc.convert`; `save_pretrained` then writes it as safetensors with a
    config, which `AutoModelForCausalLM` loads.

    Only tensors are read from the file (`weights_only`); nothing in it is run.

    Args:
        file: a Lightning checkpoint (`model.pt`), or a plain state dict saved by the authors' code.
        config: its sizes, which the file does not say: :func:`aimc.models.h3.published`.
        dtype: of the weights; the state spaces' stay in float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds other things than tensors, or a model of other sizes or another layout; the message names
            the first weight and its shape.
    """
    state = _tensors_in(Path(file))
    mapping = key_mapping(state, config.num_hidden_layers)
    _check(str(file), state, mapping, config)
    model = H3ForCausalLM.from_pretrained(None, config=config, state_dict=state, key_mapping=mapping, dtype=dtype)
    model._weight_conversions = []  # type: ignore[assignment]  # or saving would write the original names again
    return model


def key_mapping(state: dict[str, Tensor], n_layers: int) -> dict[str, str]:
    """The authors' names as regular expressions, each with its name here, to be applied one after the other: in this
    order no norm is renamed twice. That is what transformers' `from_pretrained` takes as `key_mapping`.

    Args:
        state: its names tell whether the norms are shifted.
        n_layers: layers of the model.
    """
    shifted: dict[str, str] = {}
    if any(name.startswith(("backbone.ln_0.", "s4seq.encoder.ln_0.")) for name in state):
        target = "backbone.ln_f."
        for number in reversed(range(n_layers)):
            layer = rf"^backbone\.layers\.{number}\."
            shifted |= {
                rf"{layer}norm2\.": target,
                rf"{layer}norm1\.": f"backbone.layers.{number}.norm2.",
            }
            target = f"backbone.layers.{number}.norm1."
        shifted[r"^backbone\.ln_0\."] = target
    return _EARLIER | shifted | _NAMES


def renamed(names: Iterable[str], mapping: dict[str, str]) -> dict[str, str]:
    """Each name with what all of a :func:`key_mapping` make of it, as transformers applies it."""
    found = {name: name for name in names}
    for renaming in (WeightRenaming(old, new) for old, new in mapping.items()):
        found = {name: renaming.rename_source_key(now)[0] for name, now in found.items()}
    return found


def _tensors_in(file: Path) -> dict[str, Tensor]:
    """The model's tensors, without the prefix that Lightning gives them."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give the model.pt of a published H3 model")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file}: cannot be read as tensors alone ({type(error).__name__}), and anything else could run code of its"
            " own; give a whole file, or, where you trust it, save its 'state_dict' alone with torch.save"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{file}: no state dict of tensors; give the model.pt of a published H3 model")
    if any(name.startswith(f"{_PREFIX}backbone.") or name.startswith(f"{_PREFIX}s4seq.") for name in state):
        state = {name.removeprefix(_PREFIX): x for name, x in state.items() if name.startswith(_PREFIX)}
    return {name: x for name, x in state.items() if ".rotary_emb." not in name}  # they follow from the config


def _check(file: str, state: dict[str, Tensor], mapping: dict[str, str], config: H3Config) -> None:
    """Refuse a file that is not of exactly this model, before one is made."""
    with torch.device("meta"):
        expected = {name: tuple(x.shape) for name, x in H3ForCausalLM(config).state_dict().items()}
    found = {new: tuple(state[old].shape) for old, new in renamed(state, mapping).items()}
    advice = (
        f"the config says {config.num_hidden_layers} layers of width {config.hidden_size}, attention in"
        f" {config.attention_layers}; give the file's own sizes, see aimc.models.h3.published"
    )
    for names, where in (
        (expected.keys() - found.keys(), "is not in the file"),
        (found.keys() - expected.keys(), "is not in the model"),
    ):
        if names:
            raise ValueError(f"{file}: {min(names)} {where} ({len(names)} such weights); {advice}")
    for name in sorted(expected):
        if found[name] != expected[name]:
            raise ValueError(f"{file}: {name} is {found[name]} in the file and {expected[name]} in the model; {advice}")
