"""The Hydra pipeline: digital → linear → adapt → finetune → evaluate. `python -m train` runs it."""
