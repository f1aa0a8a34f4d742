"""Small models and text that every test can make in milliseconds."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share the cores, one thread each

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aimc import presets
from aimc.hardware import Hardware

# The process that deals out the tests to others reads this file, too, and has no use for seconds of imports.
if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, GPT2Model, PreTrainedModel

REPOSITORY = Path(__file__).parents[1]
VOCABULARY, POSITIONS = 64, 32


def tiny_gpt2(seed: int = 0, **changes: object) -> GPT2LMHeadModel:
    """A random GPT-2 of two layers whose activations are large enough to matter."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(
        GPT2Config(**(sizes | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | changes))
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "c_attn.weight" in name or "c_proj.weight" in name:
                parameter.mul_(12.0)
    return model


def small_arrays(hardware: Hardware | None = None) -> Hardware:
    """Hardware with a window of 16 tokens in sub-tiles of 4, so that short sequences wrap around."""
    hardware = hardware or presets.gain_cell_cmos()
    hardware.array.window, hardware.array.rows = 16, 4
    return hardware


@pytest.fixture
def model() -> GPT2LMHeadModel:
    return tiny_gpt2()


@pytest.fixture
def hardware() -> Hardware:
    return small_arrays()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (4, POSITIONS), generator=generator) for _ in range(2)]


@pytest.fixture
def tokens() -> torch.Tensor:
    import torch

    return torch.randint(VOCABULARY, (203,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def headless() -> GPT2Model:
    """A GPT-2 without its language-model head."""
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


def shared_model(name: str) -> PreTrainedModel:
    """A pretrained model of the shared data, in evaluation; the test is skipped where that is not there."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = REPOSITORY.parent / "shared" / "data" / "models" / name
    if not folder.exists():
        pytest.skip(f"{name} is part of the shared data, which is not beside this checkout")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def command_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `command`, by the module's `main` in this process, which has imported what takes seconds."""

    from hydra.core.hydra_config import HydraConfig

    def run(main: Callable[[], None], *overrides: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["command", *overrides])
        monkeypatch.chdir(REPOSITORY)
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            sys.stderr.write(f"{end.code}\n" if isinstance(end.code, str) else "")
        finally:
            HydraConfig.instance().cfg = None
        return subprocess.CompletedProcess(["command", *overrides], status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module", autouse=True)
def imports_are_frozen() -> None:
    """What was imported stays. A training run collects garbage when it begins, and looks through it for a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart() -> None:
    gc.set_threshold(20_000, 20, 20)  # by default every 700 objects, which takes a thirtieth of all time


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or compiled libraries call what is left at the end leaks


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A test that is asked for by its name runs in this process, without workers that import torch again."""
    named = config.args and all("::" in argument for argument in config.args)
    return 0 if named else None
