"""Text to a memory-mapped token file, once: streamed, resumable, and keyed by everything that shapes it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aimc.models.manifest import MANIFEST, damage_of

from . import corpus
from .cache import PROGRESS, SETTING, Say, kept
from .errors import RunError
from .files import read_object, remove, whole_folder
from .pretrained import Vocabulary, vocabulary_of
from .shards import Tokens, remake, split_of_folder, tokenise
from .streaming import Stream, cut_in, write_head

if TYPE_CHECKING:
    from .schema import DataConfig

END_OF_TEXT = "<|endoftext|>"


@dataclass
class TokenData:
    """Tokenised text: 1-D arrays of integers, mapped, one a split, and the tokenizer that made them."""

    tokenizer: PreTrainedTokenizerBase
    splits: Mapping[str, np.ndarray | Tokens]
    fingerprint: str
    written: np.ndarray | None = None
    """What the digital model wrote to train on; None: the training text is all real."""
    share: float = 1.0
    """Share of the training sequences that is written, where something is."""
    source: DataConfig | None = None
    """Of training text that is streamed, of which the splits hold the head; None: the splits hold all."""
    cut: frozenset[str] = frozenset()
    """Splits of which they hold the head alone."""

    @property
    def extent(self) -> str:
        """How much training text there is, in words."""
        return "streamed" if self.source is not None else f"{len(self.splits['train']):,} training tokens"

    @property
    def sizes(self) -> str:
        """How many tokens each part has on disk, in words."""
        head = "; more of training text is streamed" if self.source is not None else ""
        return ", ".join(f"{split} {len(tokens):,} tokens" for split, tokens in self.splits.items()) + head

    def training_blocks(self, context: int, seed: int = 0) -> Blocks | Mixed | Stream:
        """The training text in sequences of `context` tokens; a stream in the order that the seed draws."""
        if self.source is not None:
            return Stream(self.source, self.tokenizer, self.splits["train"].dtype, context, seed)
        real = Blocks(self.splits["train"], context)
        return real if self.written is None else Mixed(Blocks(self.written, context), real, self.share)

    def tensor(self, split: str, limit: int | None = None) -> torch.Tensor:
        """The first `limit` tokens of a split, int64 [N].

        Raises:
            RunError: more than are kept of a streamed text.
        """
        self.require(split, limit)
        return torch.from_numpy(self.splits[split][:limit].astype(np.int64))

    def require(self, split: str, limit: int | None) -> None:
        """Check that so many tokens of a split are kept, or all that there are.

        Raises:
            RunError: they are not.
        """
        kept_tokens = len(self.splits[split])
        if split in self.cut and (limit is None or limit > kept_tokens):
            assert self.source is not None
            wanted = "all" if limit is None else limit
            raise RunError(
                f"data.head_tokens={self.source.head_tokens}: {wanted} tokens of the {split} part are wanted, and of"
                f" streamed text its first {kept_tokens} are kept; ask for fewer (measure.tokens, trainer.eval_tokens,"
                " stage.calibration_batches), set data.head_tokens higher, or data.streaming=false"
            )


class Blocks(torch.utils.data.Dataset):
    """Consecutive, non-overlapping stretches of `context` tokens."""

    def __init__(self, tokens: np.ndarray | Tokens, context: int, limit: int | None = None):
        self.tokens, self.context = tokens, context
        self.length = len(tokens) // context if limit is None else min(len(tokens), limit) // context

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * self.context
        ids = torch.from_numpy(self.tokens[start : start + self.context].astype(np.int64))
        labels = ids.clone()
        labels[0] = -100  # nothing before it predicts it; the trainer's mean would count it all the same
        return {"input_ids": ids, "labels": labels}


class Mixed(torch.utils.data.Dataset):
    """All of the written sequences, and so many real ones, from their start and as often as need be, that the written
    have their share. The two kinds lie evenly among each other."""

    def __init__(self, written: Blocks, real: Blocks, share: float):
        self.written, self.real, self.share, self.context = written, real, share, written.context

    def __len__(self) -> int:
        return round(len(self.written) / self.share)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        before, after = (index * len(self.written) // len(self) for index in (index, index + 1))
        return self.written[before] if after > before else self.real[(index - before) % len(self.real)]


def prepare(config: DataConfig, model_source: str | None, context: int, say: Say = lambda _: None) -> TokenData:
    """Tokenise the configured text, or reopen what an earlier run tokenised.

    Args:
        config: the text.
        model_source: folder or hub name of a pretrained model, whose tokenizer is used; None trains one on the training
            part.
        context: tokens that the model sees at once; each split must hold at least one such stretch.
        say: gets a line where what an earlier run left is damaged, and made again.

    Raises:
        RunError: unreadable, empty or too short text, no tokenizer, or a cache that cannot be written.
    """
    vocabulary = None if model_source is None else vocabulary_of(model_source)
    if config.streaming and vocabulary is None:
        raise RunError("data.streaming=true: there is no tokenizer to stream with; name a model that brings its own")

    def make(place: Path) -> None:
        if config.streaming:
            assert vocabulary is not None
            held_out = write_head(config, vocabulary.tokenizer, _integers(vocabulary.tokenizer), place)
            say(f"data.streaming: validation and test text are the first {config.head_tokens} tokens of {held_out}")
            return
        own = _own_tokenizer(config, place) if vocabulary is None else vocabulary.tokenizer
        _tokenise(config, own, _integers(own), place)

    def mend(place: Path, names: list[str]) -> bool:
        own = AutoTokenizer.from_pretrained(place / "tokenizer") if vocabulary is None else vocabulary.tokenizer
        return not config.streaming and remake(config, own, _integers(own), place, names)

    folder = kept(Path(config.cache_dir) / _fingerprint(config, model_source, vocabulary), make, say, mend)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer") if vocabulary is None else vocabulary.tokenizer
    dtype = _integers(tokenizer)
    splits: dict[str, np.ndarray | Tokens] = {}
    for split in corpus.SPLITS:
        splits[split] = split_of_folder(folder, split, dtype)
        n_tokens = len(splits[split])
        if n_tokens <= context:
            raise RunError(
                f"the {split} part of the text has {n_tokens} tokens, fewer than one context of {context}; "
                "give more text (data.path), or a model with fewer positions"
            )
    if not config.streaming:
        return TokenData(tokenizer, splits, folder.name)
    return TokenData(tokenizer, splits, folder.name, source=config, cut=cut_in(folder))


def _fingerprint(config: DataConfig, model_source: str | None, vocabulary: Vocabulary | None) -> str:
    kind = config.text_kind
    # What is written from the text, where, and by how many, does not shape it.
    other = ("cache_dir", "real_kind", "generated", "workers")
    facts: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in other}
    if not config.streaming:
        facts = {k: v for k, v in facts.items() if k not in ("streaming", "head_tokens", "shuffled_sequences")}
    facts |= {"kind": kind, "model": model_source}
    local = config.path if kind == "text" else config.dataset
    if local and Path(local).exists():
        root = Path(local)
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        facts["files"] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    if kind == "embedded":
        facts["python"] = sys.version_info[:3]
    if vocabulary is not None and vocabulary.digest is not None:
        facts["tokenizer"] = vocabulary.digest
    return f"{kind}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]}"


def _integers(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """Those that hold its ids in the fewest bytes."""
    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


def _own_tokenizer(config: DataConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The one that a run which was killed trained on this text, or a new one; its tokens are begun anew with it."""
    own = folder / "tokenizer"
    if (own / MANIFEST).exists() and damage_of(own) is None:
        return AutoTokenizer.from_pretrained(own)
    remove(folder / PROGRESS)
    texts = (piece for split, text in corpus.documents(config) if split == "train" for piece in corpus.pieces(text))
    tokenizer = train_tokenizer(texts, config.vocab_size)
    with whole_folder(own, SETTING) as place:
        tokenizer.save_pretrained(place)
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, like GPT-2's, of `vocab_size` entries, the last of which is the end-of-text mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


def _tokenise(config: DataConfig, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype, folder: Path) -> None:
    """As :func:`tokenise`, with a bar."""
    with tqdm(desc="  tokenising", unit=" tokens", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for _, n_tokens in tokenise(config, tokenizer, dtype, folder):
            bar.update(n_tokens)
    if not (read_object(folder / PROGRESS) or {}).get("documents"):
        raise RunError("the text is empty: there is no document in it; check data.path or data.dataset")


def require_same_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model read the text as a tokenizer writes it: ids of another one would mean other words.

    Args:
        folder: of the model, with its tokenizer; without one nothing is known.
        tokenizer: of the text.

    Raises:
        RunError: they are two.
    """
    from tokenizers import Tokenizer

    file, backend = folder / "tokenizer.json", getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not file.exists():
        return
    # Both as the installed version writes them: files of others may list merges in another way.
    theirs, ours = (json.loads(x.to_str())["model"] for x in (Tokenizer.from_file(str(file)), backend))
    if any(theirs.get(part) != ours.get(part) for part in ("type", "vocab", "merges")):
        raise RunError(
            f"{folder}: its tokenizer is not the one of this run's text, so every id would stand for another piece of"
            f" text; set model.source={folder.parent / 'digital'} to read the text by that one's, or give the text and"
            " the Python that it was trained on"
        )


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PretrainedConfig, source: str) -> None:
    """Check that the model knows every token id that the tokenizer can make.

    Raises:
        RunError: it does not.
    """
    if len(tokenizer) > model.vocab_size:
        raise RunError(
            f"{source}: its tokenizer makes token ids up to {len(tokenizer) - 1}, outside the model's vocabulary of"
            f" {model.vocab_size}; put the model's own tokenizer beside it"
        )
