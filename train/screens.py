"""What `--help` says of each entry point, in one screen: what it does, two examples, where all fields are listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf


@dataclass(frozen=True, slots=True)
class Screen:
    """Of one entry point."""

    command: str
    """Sub-command of `aimc`."""
    what: str
    """What it does, and where what it finds is written."""
    examples: tuple[str, str]
    """Words behind the command, with what they do after two spaces and a `#`."""


SCREENS = {
    "run": Screen(
        "train",
        "Carry a digital model over to the arrays, stage by stage. Every stage writes a folder of output_dir:\n"
        "the model, its perplexities (stage.json) and curves. The same command again goes on where it stopped.",
        (
            "experiment=shipped  # the model that ships, in minutes on a laptop",
            "model=gpt2 data=openwebtext trainer.finetune.steps=3000  # GPT-2 from the hub, on a GPU",
        ),
    ),
    "evaluation": Screen(
        "evaluate",
        "Perplexity of one checkpoint clean, under each non-ideality and under all, over chips; or task scores.",
        (
            "checkpoint=checkpoints/shipped/finetuned measure.chips=8  # under the noise of nonideality=typical",
            "checkpoint=FOLDER 'tasks=[lambada]' eval_data=FOLDER task_limit=200  # the first 200 questions",
        ),
    ),
    "real": Screen(
        "real",
        "A pretrained model on arrays without training: what each effect costs and what each remedy buys, row by row.\n"
        "Results go to output_dir; a row that is there already is not measured again.",
        (
            "'rows=[6_bit,3_bit,3_bit_protected]' measure.tokens=2048  # three machines on little text",
            "model.source=FOLDER_OR_HUB_NAME text=FILE calibration_text=FILE  # a model and text of your own",
        ),
    ),
    "whole_chip": Screen(
        "chip",
        "A whole chip, attention on gain cells and weights on static tiles: budget of error, perplexity by age, cost.",
        (
            "checkpoint=checkpoints/shipped/joint measure.chips=4  # the model that ships",
            "checkpoint=FOLDER with_curve=false  # the budget alone, without the years",
        ),
    ),
    "characterise": Screen(
        "characterise",
        "What models cost to run by length: time to the first token and per token, memory, energy where there is a\n"
        "counter, classes of operators, roofline; gain cells by the cost model beside them. Tables, CSV and a figure.",
        (
            "'models=[gpt2_tiny,mamba_tiny]' 'lengths=[256,1024,4096]'  # minutes on a laptop",
            "'models=[gpt2,mamba_130m]' 'lengths=[1024,8192,65536]' device=auto  # on a GPU",
        ),
    ),
    "study": Screen(
        "study",
        "From a checkpoint, without training: which non-ideality costs how much, how large each may be, the cheapest\n"
        "circuit within a budget, which layers and heads mind; or any grid={…}. A digital model goes onto arrays\n"
        "first. What is measured is kept, so that the same command goes on; results go to CHECKPOINT/study, and\n"
        "aimc report makes a page of them.",
        (
            "checkpoint=checkpoints/direct/finetuned  # everything, an hour on two cores",
            "checkpoint=FOLDER data=text data.path=FILE measure.context=512 measure.tokens=2048  # your own",
        ),
    ),
    "page": Screen(
        "report",
        "One self-contained page of a study (and of a run, with run=FOLDER), with PNG and CSV beside it.",
        (
            "study=checkpoints/direct/finetuned/study  # writes study.html there",
            "study=FOLDER run=checkpoints/shipped output_dir=page  # with the stages of a run",
        ),
    ),
}
"""By the name of the config."""


def screen(name: str, conf: Path) -> str:
    """The help of an entry point.

    Args:
        name: of its config, a file in `conf`.
        conf: where the configs are.
    """
    about = SCREENS[name]
    words = [f"aimc {about.command} {example}" for example in about.examples]
    width = max(len(word.partition("  #")[0]) for word in words)
    examples = [f"  {code:<{width}}  # {why.strip()}" for code, _, why in (word.partition("  #") for word in words)]
    groups = [f"  {group:<14}{', '.join(choices)}" for group, choices in _groups(name, conf)]
    return "\n".join(
        [
            f"usage: aimc {about.command} [group=choice] [field=value] …\n",
            about.what,
            "",
            *examples,
            "",
            *(["groups and their choices:", *groups, ""] if groups else []),
            f"All fields with their values: aimc {about.command} --cfg job. Several runs: -m field=1,2."
            " Hydra's own flags: --hydra-help.\n",
        ]
    )


def _groups(name: str, conf: Path) -> Iterator[tuple[str, list[str]]]:
    """Groups that a config is composed of, each with its choices."""
    for item in OmegaConf.load(conf / f"{name}.yaml").defaults:
        group = next(iter(item), "").removeprefix("override ") if not isinstance(item, str) else item
        if (conf / group).is_dir():
            yield group, sorted(path.stem for path in (conf / group).glob("*.yaml"))
