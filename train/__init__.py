"""The Hydra pipeline: digital → linear → adapt → finetune → evaluate. `python -m train` runs it.

Users call it from the command line, tests call its parts; nothing in `aimc` does. It imports all of `aimc`. Inside,
imports are relative, so that the same files are `train` in a clone and `aimc.train` once installed.
"""

import importlib.util

if importlib.util.find_spec("hydra") is None:
    raise ImportError("the pipeline needs Hydra, which is not installed; run: pip install 'aimc[train]'")
