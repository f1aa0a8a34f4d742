"""The model card that every stage leaves beside its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .run import Run


def model_card(run: Run, record: dict[str, Any], model: PreTrainedModel) -> str:
    """Markdown: what it is, how it was made, what it scores."""
    config = model.config
    data = run.config.data
    source = {
        "embedded": "documentation topics and docstrings of the running CPython",
        "text": f"local text ({data.path})",
        "hub": f"dataset {data.dataset}",
    }[data.text_kind]
    if data.is_generated and run.stage.recipes and run.stage.needs is not None:
        source = f"text written by the digital model (share {data.generated.share:g}), beside {source}"
    load = "aimc.from_pretrained" if run.stage.analog else "transformers.AutoModelForCausalLM.from_pretrained"
    n_heads = getattr(config, "num_attention_heads", None)  # Mamba has none
    heads = "" if n_heads is None else f"{n_heads} heads, "
    architecture = (
        f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, {heads}"
        f"vocabulary {config.vocab_size}, {model.num_parameters():,} parameters"
    )
    training = (
        f"{record['training_steps']} steps, {record['training_tokens']:,} tokens, {record['seconds']:.0f} s in all"
    )
    scores = "\n".join(f"| {name} | {value:.2f} |" for name, value in record["perplexity"].items())
    return f"""# {run.stage.name}

{run.stage.describe}

- Architecture: {architecture}
- Text: {source}; {run.data.extent}
- Training in this stage: {training}
- Command: `{record["command"]}`
- Load: `{load}(folder)`

| held-out perplexity ({len(run.text):,} tokens, context {run.measurement.context}) | |
|---|---|
{scores}

Licence: Apache-2.0.
"""
