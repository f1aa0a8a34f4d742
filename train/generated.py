"""Text that a digital model writes, to train analog ones on: drawn once, in batches, into the cache of tokens."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from .cache import Growing, Say, kept
from .errors import RunError
from .ranks import first_alone
from .tokens import TokenData

if TYPE_CHECKING:
    from .source import DataConfig, GeneratedConfig


FILE = "train.bin"


def write_text(
    load: Callable[[], PreTrainedModel],
    digest: str,
    data: TokenData,
    config: DataConfig,
    context: int,
    device: str,
    say: Say = lambda _: None,
) -> np.ndarray:
    """The digital model's own text, written now or by an earlier run.

    Args:
        load: the digital model; called only where there is something left to write.
        digest: of its weights.
        data: the real text: tokenizer, and prompts.
        config: how much, how, and the folder of the cache.
        context: tokens a sequence; each begins anew, from the mark before a text or a prompt, and goes on over the end
            of a text, as real training text does.
        device: as of the trainer.
        say: gets a line where what an earlier run left is damaged.

    Returns:
        Tokens `[N × context]`, memory-mapped, in the integers of the real text.

    Raises:
        RunError: prompts that leave nothing to write, or a tokenizer without a mark to start from.
    """
    wanted = config.generated
    if wanted.prompt_tokens >= context:
        raise RunError(
            f"data.generated.prompt_tokens={wanted.prompt_tokens}: sequences have {context} tokens, so nothing would be"
            f" written; set it below {context}"
        )
    facts = {k: v for k, v in asdict(wanted).items() if k != "share"}
    facts |= {"model": digest, "text": data.fingerprint, "context": context}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(config.cache_dir) / f"generated-{name}"
    place = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    with first_alone(PartialState()):  # one process writes, the others find it done
        kept(folder, lambda partial: _write(load().eval().to(place), data, wanted, context, partial), say)
    return np.memmap(folder / FILE, dtype=data.splits["train"].dtype, mode="r")


def _write(model: PreTrainedModel, data: TokenData, wanted: GeneratedConfig, context: int, folder: Path) -> None:
    """Append batch after batch, committing after each; a run that was killed goes on from the last commit."""
    dtype, total = data.splits["train"].dtype, -(-wanted.tokens // context)
    facts = {"text": data.fingerprint, **asdict(wanted)}
    with (
        Growing(folder, (FILE,)).opened() as files,
        tqdm(
            total=total * context,
            initial=files.documents * context,
            desc="  text by the digital model",
            unit=" tokens",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):
        while (done := files.documents) < total:
            size = min(wanted.batch_size, total - done)
            sequences = _sequences(model, _prompts(data, wanted, done, size), wanted, context, done)
            files.write(FILE, sequences.cpu().numpy().astype(dtype).tobytes())
            files.commit(size, **facts)
            bar.update(size * context)


def _prompts(data: TokenData, wanted: GeneratedConfig, first: int, count: int) -> Tensor:
    """What each sequence begins with, int64 `[count, P]`: the mark before a text, or real training text from somewhere,
    each place drawn from the seed and the sequence's number."""
    if not wanted.prompt_tokens:
        tokenizer = data.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise RunError(
                "data.generated.prompt_tokens=0: the tokenizer has no mark that begins or ends a text, so there is"
                " nothing to start from; set it to 1 or more"
            )
        return torch.full((count, 1), start)
    text, size = data.splits["train"], wanted.prompt_tokens
    places = [
        int(np.random.default_rng([wanted.seed, number]).integers(len(text) - size))
        for number in range(first, first + count)
    ]
    return torch.from_numpy(np.stack([text[place : place + size] for place in places]).astype(np.int64))


def _sequences(model: PreTrainedModel, prompts: Tensor, wanted: GeneratedConfig, context: int, first: int) -> Tensor:
    """Sequences of `context` tokens, int64 `[B, context]`, drawn from the seed and the number of the first of them."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=0,
        max_new_tokens=context - prompts.shape[1],
        eos_token_id=None,  # the next text follows, as in the stream of tokens that models are trained on
        pad_token_id=0,  # never used: all prompts are of one length
    )
    prompts = prompts.to(model.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(int(np.random.SeedSequence([wanted.seed, first]).generate_state(1)[0]))
        written = model.generate(prompts, attention_mask=torch.ones_like(prompts))  # type: ignore[operator]
    assert isinstance(written, Tensor)
    return written
