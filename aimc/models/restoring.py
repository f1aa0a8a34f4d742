"""A converted model again, from the digital model in its folder, the records in its config, and the tensors of its
arrays and tiles. Every loader ends here: :func:`aimc.from_pretrained` and transformers' own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from aimc.models.mark import erase_mark, use_own_attention, write_mark
from aimc.models.substrates import Substrate, substrates

YOUNGER = ".normaliser_full_scale"
"""A tensor of ones where a file, written before there was one, lacks it."""
Reading = list[tuple[Substrate, Any]]
"""Each kind of hardware that a model was on, with what its record says."""


def record_keys() -> list[str]:
    """Where records of analog hardware stand in a `config.json`."""
    return [substrate.record_key for substrate in substrates()]


def read_records(config: PretrainedConfig | dict[str, Any], source: str) -> Reading:
    """What a model's config says of the hardware that it was on; nothing where it is digital.

    Raises:
        ValueError: a record is damaged, or of an unknown version.
        aimc.static.MissingAihwkit: it has static tiles, and aihwkit is not installed.
    """
    found = config if isinstance(config, dict) else vars(config)
    read: Reading = []
    for substrate in substrates():
        record = found.get(substrate.record_key)
        if record is None:
            continue
        try:
            if not isinstance(record, dict):
                raise ValueError(f"{substrate.record_key} is damaged (no JSON object); use another copy")
            read.append((substrate, substrate.read_record(record)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            kind = (
                "" if isinstance(error, ValueError) else f"{substrate.record_key} is damaged ({type(error).__name__}): "
            )
            raise ValueError(f"{source}/config.json: {kind}{error}") from error
    return read


def expect_analog_tensors(model: PreTrainedModel) -> None:
    """Have transformers' loader pass over the tensors of arrays and tiles without a word: they are read later."""
    keys = {rf"\.{substrate.child}\." for substrate in substrates()}
    model._keys_to_ignore_on_load_unexpected = set(model._keys_to_ignore_on_load_unexpected or ()) | keys


def restore(model: PreTrainedModel, read: Reading, files: Iterable[str], source: str) -> None:
    """Put a loaded digital model onto the hardware that it was saved on.

    Arrays and tiles are made only now, on the devices of their layers, and not before the weights are read: that
    loader would replace their parameters by new ones, all of them trained; tiles cannot be made without weights, and
    it keeps to itself which tensors it missed.

    Args:
        model: with its digital weights in place.
        read: see :func:`read_records`.
        files: its safetensors files.
        source: its folder or hub name, for messages.

    Raises:
        ValueError: a tensor of arrays or tiles is missing, too many, or of another shape.
    """
    saved = _analog_tensors(files)
    erase_mark(model.config)
    for substrate, _ in read:
        delattr(model.config, substrate.record_key)  # written again as it is rebuilt
    use_own_attention(model)
    for substrate, what in read:
        substrate.rebuild(model, what)
    _load_analog(model, saved, source)
    for substrate, what in read:
        substrate.finish(model, what)
    write_mark(model.config)


def _is_analog(name: str) -> bool:
    """Whether a tensor belongs to analog hardware; the weights that tiles are programmed to are the digital model's."""
    return any(f".{substrate.child}." in name for substrate in substrates())


def _analog_tensors(files: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of arrays and tiles, by name."""
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys() if _is_analog(key)}  # noqa: SIM118 (not a dict)
    return found


def _load_analog(model: PreTrainedModel, saved: dict[str, Tensor], source: str) -> None:
    """Fill arrays and tiles, exactly those; the other weights are in place."""
    expected = {name for name in model.state_dict() if _is_analog(name)}
    saved = {_name_in(expected, name, f"{model.base_model_prefix}."): tensor for name, tensor in saved.items()}
    younger = {name for name in expected - set(saved) if name.endswith(YOUNGER)}  # than files that there may be
    odd = sorted((expected ^ set(saved)) - younger)
    reason: RuntimeError | None = None
    if not odd:
        try:
            model.load_state_dict(saved, strict=False)
        except RuntimeError as error:
            odd, reason = [line.strip() for line in str(error).splitlines() if "size mismatch" in line], error
            if not odd:  # a full memory, say, which is no damage
                raise
    if odd:
        raise ValueError(
            f"{source}: the scalers or tiles do not fit the model (first: {odd[0]}); the folder is incomplete or from"
            " another version, convert again"
        ) from reason


def _name_in(expected: set[str], name: str, prefix: str) -> str:
    """A tensor's name in this model, which may be the saved one without its head, or with one."""
    others = (name, name.removeprefix(prefix), prefix + name)
    return next((other for other in others if other in expected), name)
