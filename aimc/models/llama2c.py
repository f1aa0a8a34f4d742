"""Karpathy's llama2.c checkpoints (legacy float32 format, version 0) as a plain transformers Llama with its tokenizer.

Source of both formats and of every convention here: github.com/karpathy/llama2.c, `run.c` (`memory_map_weights`,
`build_tokenizer`, `encode`, `decode`), `export.py` (`legacy_export`) and `tokenizer.py` (`export`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_HEADER = struct.Struct("<7i")
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_ENTRY = struct.Struct("<fi")
_MAGIC = 0x616B3432
"""`ak42`: the first number of llama2.c's later formats, which are laid out differently."""
_RMS_EPS, _ROPE_THETA = 1e-5, 10000.0
"""Written into `run.c`, not into the file."""
_SPECIAL = ("<unk>", "<s>", "</s>")
_UNK, _BOS, _EOS = 0, 1, 2
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_N_FIXED = len(_SPECIAL) + len(_BYTES)
"""The special and the byte pieces come first; what follows was learnt."""


def load(
    checkpoint: str | Path, tokenizer: str | Path | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model and tokenizer; see :func:`load_model` and :func:`load_tokenizer`, whose errors it raises."""
    return load_model(checkpoint), load_tokenizer(checkpoint, tokenizer)


def find_checkpoint(source: str | Path) -> Path | None:
    """The llama2.c checkpoint that a source means: a `.bin` file, or the only one in a folder without config.json; else
    None.

    `tok*.bin` in a folder is a tokenizer.
    """
    path = Path(source)
    if path.is_file():
        return path if path.suffix == ".bin" else None
    if (path / "config.json").exists():
        return None
    found = [file for file in path.glob("*.bin") if not file.name.startswith("tok")]
    return found[0] if len(found) == 1 else None


def load_config(checkpoint: str | Path) -> LlamaConfig:
    """The architecture in a checkpoint's header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: its header is no legacy llama2.c header, or the file has another size than the header asks for.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, so there is no model to load; give the path of a llama2.c .bin checkpoint"
        )
    found = path.stat().st_size
    if found < _HEADER.size:
        raise ValueError(
            f"{path}: expected a header of {_HEADER.size} bytes, found {found} bytes; the file is truncated, use"
            " another copy"
        )
    with path.open("rb") as file:
        header = dict(zip(_FIELDS, _HEADER.unpack(file.read(_HEADER.size)), strict=True))
    _require_sane(path, header)
    config = LlamaConfig(
        vocab_size=abs(header["vocab_size"]),
        hidden_size=header["dim"],
        intermediate_size=header["hidden_dim"],
        num_hidden_layers=header["n_layers"],
        num_attention_heads=header["n_heads"],
        num_key_value_heads=header["n_kv_heads"],
        max_position_embeddings=header["seq_len"],
        rms_norm_eps=_RMS_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=header["vocab_size"] > 0,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )
    expected = _HEADER.size + 4 * sum(int(np.prod(shape, dtype=object)) for _, shape in _layout(config))
    if found != expected:
        raise ValueError(
            f"{path}: its header asks for {expected} bytes, found {found} bytes; the file is truncated or no legacy"
            " float32 export, use another copy"
        )
    return config


def _require_sane(path: Path, header: dict[str, int]) -> None:
    if header["dim"] == _MAGIC:
        raise ValueError(
            f"{path}: a llama2.c checkpoint of format 1 or later, whose weights are laid out differently; export it"
            " again with --version 0"
        )
    dim, heads, kv_heads = header["dim"], header["n_heads"], header["n_kv_heads"]
    positive = all(value > 0 for name, value in header.items() if name != "vocab_size") and header["vocab_size"] != 0
    if not positive or dim % heads or heads % kv_heads or dim // heads % 2:
        raise ValueError(
            f"{path}: its header makes no Llama ({', '.join(f'{name}={value}' for name, value in header.items())}):"
            " sizes must be positive, n_heads divide dim into even parts and n_kv_heads divide n_heads; is it a legacy"
            " llama2.c checkpoint?"
        )


def _layout(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the file, in its order: all layers of a kind together; a name without a dot is
    not a weight."""
    layers, dim, hidden = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    head = dim // config.num_attention_heads
    kv_dim = head * (config.num_key_value_heads or config.num_attention_heads)
    yield "model.embed_tokens.weight", (config.vocab_size, dim)
    yield "input_layernorm.weight", (layers, dim)
    yield "self_attn.q_proj.weight", (layers, dim, dim)
    yield "self_attn.k_proj.weight", (layers, kv_dim, dim)
    yield "self_attn.v_proj.weight", (layers, kv_dim, dim)
    yield "self_attn.o_proj.weight", (layers, dim, dim)
    yield "post_attention_layernorm.weight", (layers, dim)
    yield "mlp.gate_proj.weight", (layers, hidden, dim)
    yield "mlp.down_proj.weight", (layers, dim, hidden)
    yield "mlp.up_proj.weight", (layers, hidden, dim)
    yield "model.norm.weight", (dim,)
    yield "freq_cis_real", (config.max_position_embeddings, head // 2)
    yield "freq_cis_imag", (config.max_position_embeddings, head // 2)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, dim)


def load_model(checkpoint: str | Path) -> LlamaForCausalLM:
    """The model of a checkpoint, in float32 and in evaluation mode, on the CPU.

    Generation stops at `</s>` and, like run.c, at `<s>`: llama2.c's training text has the latter between documents and
    never the former.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no legacy llama2.c checkpoint, or truncated.
    """
    config = load_config(checkpoint)
    with torch.random.fork_rng(
        devices=[]
    ):  # the weights drawn here are all replaced: the caller's random numbers stay as they were
        model = LlamaForCausalLM(config).float()
    model.load_state_dict(_weights(Path(checkpoint), config))
    model.generation_config.eos_token_id = [_EOS, _BOS]
    return model.eval()


def _weights(path: Path, config: LlamaConfig) -> dict[str, Tensor]:
    """The weights under transformers' names, copied out of the file."""
    numbers = np.memmap(path, dtype="<f4", mode="r", offset=_HEADER.size)
    weights, start = {}, 0
    for name, shape in _layout(config):
        stop = start + int(np.prod(shape))
        tensor = torch.from_numpy(numbers[start:stop].astype(np.float32).reshape(shape))
        start = stop
        if name.startswith(("model.", "lm_head.")):
            weights[name] = tensor
        elif "." in name:
            if name.startswith(("self_attn.q_proj", "self_attn.k_proj")):
                tensor = _half_split(tensor, config.hidden_size // config.num_attention_heads)
            weights |= {f"model.layers.{layer}.{name}": tensor[layer] for layer in range(config.num_hidden_layers)}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def _half_split(weight: Tensor, head: int) -> Tensor:
    """Reorder the rows of `[L, H * D, dim]`: llama2.c rotates neighbours (2i, 2i + 1) of a head, transformers rotates
    (i, i + D / 2)."""
    layers, _, dim = weight.shape
    pairs = weight.view(layers, -1, head // 2, 2, dim)  # [L, H, D / 2, 2, dim]
    return pairs.transpose(2, 3).reshape(weight.shape)


def load_tokenizer(checkpoint: str | Path, tokenizer: str | Path | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint: run.c's `encode` with `<s>` in front, and its `decode`.

    What looks like a special token in a text is spelt out, as run.c does. One tie is broken differently: where a piece
        can be made of two
    overlapping pairs (x y and y z), run.c takes the left one, this tokenizer the one with the shorter first part.

    Args:
        checkpoint: the model's .bin file, whose vocabulary size must be the tokenizer's.
        tokenizer: llama2.c's tok*.bin; None: the only one beside the checkpoint.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: more than one tok*.bin to choose from, damaged, or of another vocabulary than the model's.
    """
    vocab_size = load_config(checkpoint).vocab_size
    path = _tokenizer_beside(Path(checkpoint)) if tokenizer is None else Path(tokenizer)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, so text cannot become tokens; give the path of the model's tok*.bin"
        )
    pieces, scores = _read_pieces(path)
    if len(pieces) != vocab_size:
        raise ValueError(
            f"{path}: it has {len(pieces)} tokens, the model {checkpoint} has {vocab_size}, so ids would mean something"
            " else; give the model's own tok*.bin"
        )
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=_merges(pieces, scores),
            unk_token=_SPECIAL[_UNK],
            byte_fallback=True,
        )
    )
    # spaces stay spaces: SentencePiece's mark in a text is a character like any other to run.c
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bos = _SPECIAL[_BOS]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, _BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=_SPECIAL[_UNK],
        bos_token=bos,
        eos_token=_SPECIAL[_EOS],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _tokenizer_beside(checkpoint: Path) -> Path:
    found = sorted(file for file in checkpoint.parent.glob("tok*.bin") if file.name != checkpoint.name)
    if not found:
        raise FileNotFoundError(
            f"{checkpoint.parent}: no tok*.bin beside {checkpoint.name}, so text cannot become tokens; give tokenizer=…"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(
            f"{checkpoint.parent}: which of {names} belongs to {checkpoint.name} cannot be known; give tokenizer=…"
        )
    return found[0]


def _read_pieces(path: Path) -> tuple[list[str], list[float]]:
    """Every token's text and score, by id; the special pieces under transformers' names."""
    data, position = path.read_bytes(), 4  # the first number, the longest piece's length, is for C's buffers
    raw: list[bytes] = []
    scores: list[float] = []
    while position < len(data):
        score, length = _ENTRY.unpack_from(data, position) if position + _ENTRY.size <= len(data) else (0.0, -1)
        position += _ENTRY.size + length
        if length < 0 or position > len(data):
            raise ValueError(
                f"{path}: token {len(raw)} does not fit into the file's {len(data)} bytes; it is damaged, use another"
                " copy"
            )
        raw.append(data[position - length : position])
        scores.append(score)
    try:
        pieces = [*_SPECIAL, *(piece.decode("utf-8") for piece in raw[len(_SPECIAL) :])]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: a token is not UTF-8 ({error}); it is damaged or no llama2.c tokenizer, use another copy"
        ) from error
    if pieces[len(_SPECIAL) : _N_FIXED] != _BYTES or len(raw) < _N_FIXED:
        raise ValueError(
            f"{path}: tokens {len(_SPECIAL)} to {_N_FIXED - 1} are not <0x00> to <0xFF>, so unknown characters could"
            " not be spelt; export it with llama2.c's tokenizer.py"
        )
    if len(set(pieces)) != len(pieces):
        twice = next(piece for i, piece in enumerate(pieces) if piece in pieces[:i])
        raise ValueError(
            f"{path}: the token {twice!r} is there twice, so its id is ambiguous; it is damaged, use another copy"
        )
    return pieces, scores


def _merges(pieces: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of learnt pieces that makes a learnt piece, the best score first."""
    learnt = set(pieces[_N_FIXED:])
    by_score = sorted(range(_N_FIXED, len(pieces)), key=lambda i: -scores[i])
    splits = ((pieces[i][:cut], pieces[i][cut:]) for i in by_score for cut in range(1, len(pieces[i])))
    return [(left, right) for left, right in splits if left in learnt and right in learnt]
