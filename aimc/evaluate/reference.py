"""The digital model that a converted one is compared with: what may stand there."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from aimc.models.substrates import require_as_saved, substrates_under


def require_reference(model: PreTrainedModel, reference: Any) -> None:
    """Check that `reference` can be what `model` is compared with, token by token.

    Raises:
        TypeError: no transformers model.
        ValueError: it is converted itself, or has another vocabulary.
    """
    if not isinstance(reference, PreTrainedModel):
        raise TypeError(
            f"reference={type(reference).__name__}: the digital model is needed, a transformers PreTrainedModel; for"
            " the same weights on digital hardware give aimc.to_digital(copy.deepcopy(model))"
        )
    require_as_saved(reference)
    if substrates_under(reference):
        raise ValueError(
            "reference: it is on analog hardware itself, so the comparison would not say what the hardware costs; give"
            " the digital model, or aimc.to_digital(copy.deepcopy(model))"
        )
    ours, theirs = model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise ValueError(
            f"reference: it has a vocabulary of {theirs} tokens and the model one of {ours}, so their predictions are"
            " of different things; give the digital model that this one was made of"
        )
