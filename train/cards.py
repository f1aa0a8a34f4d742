"""The model card that every stage leaves beside its weights."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .stages import Run

_WHAT = {
    "digital": "The digital baseline.",
    "control": (
        "The digital baseline after the same extra training that the analog models get: what they are compared with."
    ),
    "softmax": (
        "The digital baseline on gain-cell arrays with a digital softmax between them, by range calibration; no"
        " training."
    ),
    "linear": "Attention on gain-cell arrays with a linear cell, trained hardware-aware.",
    "adapt": (
        "The linear model's weights on the nonlinear cell, scalers adapted by statistics matching; no gradient step."
    ),
    "finetune": "Attention on gain-cell arrays with the nonlinear cell, adapted and fine-tuned hardware-aware.",
    "joint": (
        "Attention on gain-cell arrays, projections and MLPs on static tiles (aihwkit), trained together; weights are"
        " targets, not programmed."
    ),
}


def model_card(run: Run, stage: str, record: dict[str, Any], model: PreTrainedModel) -> str:
    """Markdown: what it is, how it was made, what it scores."""
    config = model.config
    data = run.config.data
    source = {
        "embedded": "documentation topics and docstrings of the running CPython",
        "text": f"local text ({data.path})",
        "hub": f"dataset {data.dataset}",
    }[data.kind]
    load = (
        "transformers.AutoModelForCausalLM.from_pretrained"
        if stage in ("digital", "control")
        else "aimc.from_pretrained"
    )
    architecture = (
        f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size}, {model.num_parameters():,} parameters"
    )
    training = (
        f"{record['training_steps']} steps, {record['training_tokens']:,} tokens, {record['seconds']:.0f} s in all"
    )
    scores = "\n".join(f"| {name} | {value:.2f} |" for name, value in record["perplexity"].items())
    return f"""# {stage}

{_WHAT[stage]}

- Architecture: {architecture}
- Text: {source}; {len(run.data.splits["train"]):,} training tokens
- Training in this stage: {training}
- Command: `{record["command"]}`
- Load: `{load}(folder)`

| held-out perplexity ({len(run.test_tokens):,} tokens, context {run.context}) | |
|---|---|
{scores}

Licence: Apache-2.0.
"""
