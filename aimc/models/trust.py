"""What a model's folder from a stranger may ask for: files beside its index, and no code of its own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

INDICES = "*.index*.json"
"""Files that name the files of a model's weights."""
MOST, MOST_LAYERS = 2**40, 10_000
"""What a whole number in a config may be, and how many layers there may be."""
SIZES = (
    "hidden_size",
    "n_embd",
    "n_head",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "n_positions",
    "max_position_embeddings",
)
"""Numbers that are at least one."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def require_plain_names(folder: str | Path) -> None:
    """Check that the indices of a folder name files in that folder.

    Args:
        folder: anything else, such as a hub name, is not looked at.

    Raises:
        ValueError: an index names a path, which could be any file of this machine.
    """
    for index in sorted(Path(folder).glob(INDICES)) if Path(folder).is_dir() else ():
        shard_names(index, str(folder))


def require_plain_weights(config: Any, source: str | Path) -> None:
    """Check that a config names no file of weights elsewhere, such as an index that was not looked at.

    Raises:
        ValueError: it names a path.
    """
    named = (config if isinstance(config, dict) else vars(config)).get("transformers_weights")
    if named is not None and not (isinstance(named, str) and is_plain_name(named)):
        raise ValueError(
            f"{source}/config.json: transformers_weights={named!r} is no file beside it; a model from elsewhere must"
            " not say which file of this machine is read: use another copy"
        )


def require_no_adapter(model: Any, source: str | Path) -> None:
    """Check that transformers has put no adapter on a model because one lay beside it.

    Raises:
        ValueError: it has; nobody would save the model itself then, or hear of weights that it lacks.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{source}: an adapter lies beside the model (adapter_config.json), and would be loaded into it without a"
            " word; merge it first (peft's merge_and_unload) and save the whole model, or take the adapter away"
        )


def shard_names(index: Path, source: str) -> list[str]:
    """The files that an index names, sorted, each once.

    Raises:
        ValueError: it is damaged, or names a path in place of a file beside it.
    """
    try:
        listed: Any = json.loads(index.read_text(encoding="utf-8"))
        shards = set(listed["weight_map"].values())
        if not all(isinstance(shard, str) for shard in shards):
            raise TypeError("a name is no text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source}: its weights cannot be read ({index.name} has no weight_map of names); the folder is incomplete"
            " or damaged, use another copy"
        ) from error
    for shard in sorted(shards):
        if not is_plain_name(shard):
            raise ValueError(
                f"{source}: {index.name} names {shard!r}, which is no file beside it; a model from elsewhere must not"
                " say which file of this machine is read: use another copy"
            )
    return sorted(shards)


def is_plain_name(name: str) -> bool:
    """Whether it is a file's name and nothing else, on any system."""
    return name not in ("", ".", "..") and PureWindowsPath(name).name == name


@contextmanager
def naming_config(source: str | Path) -> Iterator[None]:
    """Whatever a library raises over a `config.json` with wrong values in it, told with the file's name.

    Raises:
        ValueError: in place of it.
    """
    try:
        yield
    except (OSError, ImportError):  # these name what they miss
        raise
    except Exception as error:
        message = next(iter(str(error).splitlines()), "no message")
        if str(source) in message:
            raise
        raise ValueError(
            f"{source}/config.json: {message} ({type(error).__name__}); the file is damaged or of another version, use"
            " another copy"
        ) from error


def require_possible_sizes(config: Any, source: str | Path) -> None:
    """Check that a config asks for no more than a machine could ever make; to find out by making it takes for ever.

    Raises:
        ValueError: a whole number that no model has.
    """
    values = config if isinstance(config, dict) else vars(config)
    for name, value in values.items():
        least, most = int(name in SIZES + _LAYERS), MOST_LAYERS if name in _LAYERS else MOST
        if isinstance(value, int) and not (least if name in SIZES + _LAYERS else -MOST) <= value <= most:
            raise ValueError(
                f"{source}/config.json: {name}={value:.3g}: no model has fewer than {least} or more than {most:.3g};"
                " the file is damaged, use another copy"
            )


def say_code_is_ignored(config: Any, source: str | Path) -> None:
    """Warn of code that a config names (`auto_map`), which is never run unless the caller trusts it.

    Args:
        config: as read, a mapping or transformers' own.
        source: folder or hub name, for the message.
    """
    named = config.get("auto_map") if isinstance(config, dict) else getattr(config, "auto_map", None)
    if named:
        warnings.warn(
            f"{source}: its config names code of its own (auto_map: {', '.join(map(str, named))}); it is ignored, and"
            " transformers' own model of that type is used (trust_remote_code=True would run it)",
            stacklevel=3,
        )
