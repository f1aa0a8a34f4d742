"""Mamba and Mamba-2 are transformers' own; here is only the word about checkpoints that are not in its layout.

`mamba_ssm`, the authors' package, writes a `config.json` without a model type (`d_model`, `n_layer`, `ssm_cfg`) and a
pickled `pytorch_model.bin` whose embedding is `backbone.embedding.weight`. The authors publish most models in both
layouts; the name of the one for transformers ends in `-hf`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_NAME = re.compile(r"state-spaces/(mamba2?)-[\w.]+$")
_CONVERTED = {"mamba": "{}-hf", "mamba2": "AntonV/{}-hf"}
"""Where the same weights lie for transformers, of Mamba and of Mamba-2 (by its converter's author)."""
_RAW_KEYS = {"d_model", "n_layer"}


class RawMamba(ValueError):
    """A checkpoint in the layout of `mamba_ssm`."""


def refuse_raw(source: str | Path) -> None:
    """Nothing, unless a source is Mamba in its authors' layout: a name on the hub, or a folder.

    Raises:
        RawMamba: it is; the message says where the other layout is.
    """
    name, folder = str(source), Path(source)
    found = _NAME.match(name)
    if found is not None and not folder.exists():
        kind = found[1]
        other = _CONVERTED[kind].format(name if kind == "mamba" else name.removeprefix("state-spaces/"))
        raise RawMamba(
            f"{name}: Mamba in the layout of mamba_ssm, pickled weights that transformers does not read; give {other}"
        )
    if folder.is_dir() and _is_raw(folder / "config.json"):
        raise RawMamba(
            f"{name}: Mamba in the layout of mamba_ssm (config.json has d_model and n_layer, and no model_type), which"
            " transformers does not read; give the -hf copy of it, such as state-spaces/mamba-130m-hf"
        )


def _is_raw(file: Path) -> bool:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads the config next says so
        return False
    return isinstance(config, dict) and config.keys() >= _RAW_KEYS and "model_type" not in config
