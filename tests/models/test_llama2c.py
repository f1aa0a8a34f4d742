"""llama2.c checkpoints: the same logits and tokens as run.c, whose forward pass and `encode` are written out here in
numpy and Python."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aimc.models import llama2c
from tests.conftest import REPOSITORY
from train.errors import RunError
from train.pretrained import load_digital
from train.schema import DataConfig
from train.tokens import prepare

STORIES = REPOSITORY.parent / "shared" / "data" / "models" / "stories260K"
needs_stories = pytest.mark.skipif(
    not (STORIES / "golden.json").exists(), reason=f"{STORIES} is not here: needs the shared data"
)
LEARNT = [" a", "ab", "bc", " ab", "abc", "aa", "é", "éa", " ", "a", "b", "c"]
N_TOKENS = 259 + len(LEARNT)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SIZES = {
    "dim": 24,
    "hidden_dim": 20,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": N_TOKENS,
    "seq_len": 16,
}
TEXTS = [
    "a",
    " leading",
    "trailing  ",
    "two\n\nlines\tand a tab",
    "naïve café — “quoted”…",
    "日本語 and 🦙🦙",
    "a▁b",
    "<s> </s> <unk> <0x0A>",
    "e\u0301 combined",
]


def write_checkpoint(file: Path, **changes: int) -> dict[str, np.ndarray]:
    """A random checkpoint in legacy order; returns its weights under llama2.c's names."""
    sizes = SIZES | changes
    dim, hidden, layers, vocab = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"], abs(sizes["vocab_size"])
    head = dim // sizes["n_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings": (vocab, dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, head * sizes["n_kv_heads"], dim),
        "wv": (layers, head * sizes["n_kv_heads"], dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final": (dim,),
        "freq_cis_real": (sizes["seq_len"], head // 2),
        "freq_cis_imag": (sizes["seq_len"], head // 2),
    }
    if sizes["vocab_size"] < 0:
        shapes["wcls"] = (vocab, dim)
    generator = np.random.default_rng(0)
    weights = {
        name: (generator.normal(size=shape) * (0.5 if len(shape) == 3 else 1.0)).astype("<f4")
        for name, shape in shapes.items()
    }
    file.write_bytes(struct.pack("<7i", *sizes.values()) + b"".join(weight.tobytes() for weight in weights.values()))
    return weights


def write_tokenizer(file: Path, pieces: list[str | bytes] | None = None, worst_first: bool = False) -> None:
    """llama2.c's tokenizer file; the best score first, as SentencePiece learns them, or last."""
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *BYTES, *LEARNT] if pieces is None else pieces
    data = struct.pack("<i", 8)
    for i, piece in enumerate(pieces):
        raw = piece if isinstance(piece, bytes) else piece.encode()
        data += struct.pack("<fi", float(max(0, i - 258) if worst_first else min(0, 259 - i)), len(raw)) + raw
    file.write_bytes(data)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "tiny.bin")
    write_tokenizer(tmp_path / "tok.bin")
    return tmp_path / "tiny.bin"


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def rotate(x: np.ndarray) -> np.ndarray:
    """x `[T, H, D]`: neighbours are the two parts of a complex number, as in run.c."""
    n_tokens, _, head = x.shape
    angle = np.arange(n_tokens)[:, None] / 10000.0 ** (np.arange(0, head, 2) / head)  # [T, D / 2]
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def forward(weights: dict[str, np.ndarray], ids: list[int], n_heads: int, n_kv_heads: int) -> np.ndarray:
    """run.c's forward pass over a whole sequence in float64; logits `[T, V]`."""
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    n_tokens, head = len(ids), w["wq"].shape[1] // n_heads
    x = w["tok_embeddings"][ids]
    future = np.triu(np.full((n_tokens, n_tokens), -np.inf), 1)
    for layer in range(len(w["wq"])):
        h = rms_norm(x, w["rms_att"][layer])
        q = rotate((h @ w["wq"][layer].T).reshape(n_tokens, n_heads, head))
        k = rotate((h @ w["wk"][layer].T).reshape(n_tokens, n_kv_heads, head))
        v = (h @ w["wv"][layer].T).reshape(n_tokens, n_kv_heads, head)
        heads = []
        for i in range(n_heads):
            j = i // (n_heads // n_kv_heads)
            scores = q[:, i] @ k[:, j].T / math.sqrt(head) + future
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, j])
        x = x + np.concatenate(heads, -1) @ w["wo"][layer].T
        h = rms_norm(x, w["rms_ffn"][layer])
        gate = h @ w["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
    return rms_norm(x, w["rms_final"]) @ w.get("wcls", w["tok_embeddings"]).T


def read_tokenizer(file: Path) -> tuple[dict[bytes, int], list[float]]:
    data, position = file.read_bytes(), 4
    ids: dict[bytes, int] = {}
    scores = []
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        ids[data[position + 8 : position + 8 + length]] = len(scores)
        scores.append(score)
        position += 8 + length
    return ids, scores


def encode(text: str, tokenizer: Path) -> list[int]:
    """run.c's `encode`: characters or else their bytes, then the best neighbours merged, again and again."""
    vocabulary, scores = read_tokenizer(tokenizer)
    pieces = list(vocabulary)
    tokens = [1]
    if text:
        tokens.append(vocabulary[b" "])
    for character in text:
        raw = character.encode()
        tokens += [vocabulary[raw]] if raw in vocabulary else [byte + 3 for byte in raw]
    while True:
        best, where, merged = -1e10, -1, -1
        for i, (left, right) in enumerate(zip(tokens, tokens[1:], strict=False)):
            found = vocabulary.get(pieces[left] + pieces[right])
            if found is not None and scores[found] > best:
                best, where, merged = scores[found], i, found
        if where < 0:
            return tokens
        tokens[where : where + 2] = [merged]


@needs_stories
def test_tells_the_golden_story() -> None:
    golden = json.loads((STORIES / "golden.json").read_text())
    model, tokenizer = llama2c.load(STORIES / "stories260K.bin")
    prompt = tokenizer(golden["prompt"], return_tensors="pt")
    # run.c counts forward passes: the prompt is among them, the token after the last pass is kept, and `<s>` at the
    # front is not counted
    ids = model.generate(**prompt, max_length=golden["steps"] + 1, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == golden["text"]
    assert {name: golden["config"][name] for name in ("dim", "n_kv_heads", "seq_len")} == {
        "dim": model.config.hidden_size,
        "n_kv_heads": model.config.num_key_value_heads,
        "seq_len": model.config.max_position_embeddings,
    }


@needs_stories
def test_real_tokenizer_encodes_as_run_c() -> None:
    golden = json.loads((STORIES / "golden.json").read_text())["text"]
    tokenizer = llama2c.load_tokenizer(STORIES / "stories260K.bin")
    for text in (golden, *golden.split("."), *TEXTS, ""):
        ids = tokenizer.encode(text)
        assert ids == encode(text, STORIES / "tok512.bin"), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_run_c(checkpoint: Path, n_kv_heads: int, shared: bool) -> None:
    weights = write_checkpoint(checkpoint, n_kv_heads=n_kv_heads, vocab_size=N_TOKENS if shared else -N_TOKENS)
    model, tokenizer = llama2c.load(checkpoint)
    ids = [1, *range(250, 265)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    expected = forward(weights, ids, SIZES["n_heads"], n_kv_heads)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    assert not model.training and all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == shared
    assert len(tokenizer) == model.config.vocab_size == N_TOKENS


def test_draws_no_random_numbers_of_the_caller(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    llama2c.load_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shared", [True, False])
def test_goes_through_a_transformers_folder(checkpoint: Path, tmp_path: Path, shared: bool) -> None:
    write_checkpoint(checkpoint, vocab_size=N_TOKENS if shared else -N_TOKENS)
    model, tokenizer = llama2c.load(checkpoint)
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    again, tokenizer_again = (
        kind.from_pretrained(tmp_path / "folder") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = torch.arange(250, 262)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer_again.encode(text) == ids
        assert tokenizer_again.decode(ids, skip_special_tokens=True) == text
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id == [2, 1]


@pytest.mark.parametrize("worst_first", [False, True])
def test_encodes_as_run_c_whatever_the_text(checkpoint: Path, worst_first: bool) -> None:
    write_tokenizer(checkpoint.parent / "tok.bin", worst_first=worst_first)
    tokenizer = llama2c.load_tokenizer(checkpoint)
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("aabbc é▁\nx🦙", k=draw.randrange(20)))
        ids = tokenizer.encode(text)
        assert ids == encode(text, checkpoint.parent / "tok.bin"), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_missing_and_truncated_checkpoints(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.bin: no such file, .*; give the path"):
        llama2c.load(checkpoint.with_name("none.bin"))
    data = checkpoint.read_bytes()
    for wrong in (data[:-4], data + b"\0" * 4):
        checkpoint.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"its header asks for {len(data)} bytes, found {len(wrong)} bytes"):
            llama2c.load(checkpoint)
    checkpoint.write_bytes(data[:20])
    with pytest.raises(ValueError, match="expected a header of 28 bytes, found 20 bytes"):
        llama2c.load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 25}, "dim=25"),
        ({"n_kv_heads": 3}, "n_kv_heads=3"),
        ({"n_heads": 8}, "n_heads=8"),  # heads of 3: no pairs to rotate
        ({"n_heads": 0}, "n_heads=0"),
        ({"n_layers": -2}, "n_layers=-2"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"dim": 0x616B3432}, "export it again with --version 0"),
        ({"hidden_dim": 2**31 - 2, "dim": 2**31 - 8}, "its header asks for [0-9]{12,} bytes"),
    ],
)
def test_nonsense_headers(checkpoint: Path, changes: dict[str, int], said: str) -> None:
    checkpoint.write_bytes(struct.pack("<7i", *(SIZES | changes).values()) + checkpoint.read_bytes()[28:])
    with pytest.raises(ValueError, match=said):
        llama2c.load(checkpoint)


def test_which_tokenizer(checkpoint: Path) -> None:
    write_tokenizer(checkpoint.with_name("tok2.bin"))
    with pytest.raises(
        ValueError, match=r"which of tok\.bin, tok2\.bin belongs to tiny\.bin cannot be known; give tokenizer=…"
    ):
        llama2c.load(checkpoint)
    assert len(llama2c.load(checkpoint, checkpoint.with_name("tok2.bin"))[1]) == N_TOKENS
    with pytest.raises(FileNotFoundError, match=r"tok3\.bin: no such file"):
        llama2c.load(checkpoint, checkpoint.with_name("tok3.bin"))
    for file in checkpoint.parent.glob("tok*.bin"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no tok\*\.bin beside tiny\.bin, .*; give tokenizer=…"):
        llama2c.load(checkpoint)


def test_damaged_tokenizers(checkpoint: Path) -> None:
    file = checkpoint.parent / "tok.bin"
    specials = ["<unk>", "\n<s>\n", "\n</s>\n"]
    damaged: list[tuple[list[str | bytes], str]] = [
        ([*specials, *BYTES, *LEARNT[:-1]], f"it has {N_TOKENS - 1} tokens, the model .* has {N_TOKENS}"),
        ([*specials, *BYTES, *LEARNT[:-1], LEARNT[0]], "the token ' a' is there twice"),
        ([*specials, *LEARNT, *BYTES], "tokens 3 to 258 are not <0x00> to <0xFF>"),
        ([*specials, *BYTES[:100]], "tokens 3 to 258 are not <0x00> to <0xFF>"),
        ([*specials, *BYTES, b"\xff", *LEARNT[1:]], "a token is not UTF-8"),
    ]
    for pieces, said in damaged:
        write_tokenizer(file, pieces)
        with pytest.raises(ValueError, match=said):
            llama2c.load(checkpoint)
    write_tokenizer(file)
    whole = file.read_bytes()
    for cut in (1, 4):  # within the last token's text, and within its numbers
        file.write_bytes(whole[:-cut])
        with pytest.raises(
            ValueError, match=f"token {N_TOKENS - 1} does not fit into the file's {len(whole) - cut} bytes"
        ):
            llama2c.load(checkpoint)


def test_training_takes_a_checkpoint_as_source(checkpoint: Path, tmp_path: Path) -> None:
    expected = llama2c.load_model(checkpoint)
    for source in (checkpoint, checkpoint.parent):
        assert llama2c.find_checkpoint(source) == checkpoint
        assert torch.equal(load_digital(str(source)).lm_head.weight, expected.lm_head.weight)
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text("abc ab aa " * 20)
    config = DataConfig(kind="text", path=str(tmp_path / "text"), cache_dir=str(tmp_path / "cache"))
    first = prepare(config, str(checkpoint), 16)
    assert first.tokenizer.encode("ab") == encode("ab", checkpoint.parent / "tok.bin")
    write_tokenizer(checkpoint.parent / "tok.bin", ["<unk>", "\n<s>\n", "\n</s>\n", *BYTES, *LEARNT[::-1]])
    assert prepare(config, str(checkpoint), 16).fingerprint != first.fingerprint


def test_what_is_no_checkpoint(checkpoint: Path) -> None:
    folder = checkpoint.parent
    assert llama2c.find_checkpoint("some/hub-name") is None
    assert llama2c.find_checkpoint(folder / "none.bin") is None
    (folder / "other.bin").write_bytes(b"")
    assert llama2c.find_checkpoint(folder) is None
    (folder / "other.bin").unlink()
    (folder / "config.json").write_text("{}")
    assert llama2c.find_checkpoint(folder) is None
    assert llama2c.find_checkpoint(folder / "config.json") is None
    checkpoint.write_bytes(b"")
    with pytest.raises(
        RunError, match=r"model\.source=.*tiny\.bin: cannot be loaded \(ValueError: .*expected a header of 28 bytes"
    ):
        load_digital(str(checkpoint))
