"""Where the text of a run comes from, as a config."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import RunError
from .fields import check, choice, number

REAL_KINDS = ("embedded", "text", "hub")
DATA_KINDS = (*REAL_KINDS, "generated")


@dataclass(slots=True, kw_only=True)
class GeneratedConfig:
    """Text that the digital model writes itself, to train the analog models on where there is little text."""

    tokens: int = number(1_000_000, least=2)
    """Tokens that are written, in sequences as long as those that are trained on; the last one is written whole."""
    share: float = number(1.0, above=0, most=1, hint="1 trains on written text alone, 0.5 on as much real text")
    """Share of the training sequences that is written; the others are real text."""
    temperature: float = number(1.0, above=0)
    """Of the softmax that tokens are drawn from; 1 is the model's own distribution."""
    top_p: float = number(1.0, above=0, most=1)
    """Tokens are drawn among the most likely ones that have this probability together; 1: among all."""
    prompt_tokens: int = number(0, least=0)
    """Tokens of real training text that each sequence goes on from, and holds; 0: it starts from the mark before a
    text."""
    batch_size: int = number(64, least=1)
    """Sequences that are written together; another number draws other text."""
    seed: int = number(0, least=0)
    """Of the drawing."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where the text comes from."""

    kind: str = choice("embedded", DATA_KINDS)
    """`embedded` (CPython's own documentation), `text` (a file or folder), `hub` (a Hugging Face dataset), or
    `generated`: the analog models and the control train on text that the digital model writes (`generated`), while the
    digital model's own training, prompts, calibration, validation and test stay with the text of `real_kind`."""
    real_kind: str = choice("embedded", REAL_KINDS)
    """For `generated`: kind of the real text."""
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    """For `generated`: how much is written, and how."""
    path: str | None = None
    """For `text`: a file, or a folder with train.txt, valid.txt and test.txt."""
    dataset: str | None = None
    """For `hub`: name, local folder, or a .jsonl, .parquet, .arrow or .csv file."""
    dataset_config: str | None = None
    """For `hub`: the dataset's configuration, where it has several."""
    column: str = "text"
    """For `hub`: the column with the text."""
    vocab_size: int = number(
        2048,
        least=257,
        most=2_000_000,
        hint="a byte-level tokenizer has 256 bytes and an end mark, so at least 257 entries",
    )
    """Entries of the tokenizer that is trained where the model is trained from scratch."""
    context: int | None = number(None, least=2)
    """Tokens a training sequence; null: as many as the model has positions."""
    cache_dir: str = "data"
    """Folder of the tokenised text."""
    streaming: bool = False
    """For `hub`: true: training text is read and tokenised while training, in windows that are shuffled, and never
    kept; `head_tokens` of each part are. False: all of it is tokenised first, and shuffled as a whole."""
    head_tokens: int = number(2**20, least=2)
    """For `streaming`: tokens of training, validation and test text that are kept, for calibration and measurements."""
    shuffled_sequences: int = number(1024, least=1)
    """For `streaming`: sequences of a window, which are shuffled among each other."""
    workers: int | None = number(None, least=1, most=1024)
    """Processes that tokenise a large text (16 MB and more); null: one a CPU, 32 at most. The tokens are the same."""

    def __post_init__(self) -> None:
        check(self)
        if self.streaming and self.kind != "hub":
            raise RunError(
                f"streaming=true: kind={self.kind} is no dataset that could be streamed; set data.kind=hub and"
                " data.dataset, or data.streaming=false"
            )

    @property
    def is_generated(self) -> bool:
        """Whether the digital model writes training text."""
        return self.kind == "generated"

    @property
    def text_kind(self) -> str:
        """Where the real text comes from."""
        return self.real_kind if self.is_generated else self.kind
