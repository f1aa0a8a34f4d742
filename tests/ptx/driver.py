"""A GPU for Triton that is not there: what is launched on it is compiled as far as PTX, and computed by
:mod:`tests.ptx.processor`.

`python -m pytest -p tests.ptx.driver tests/ops/test_triton.py` runs tests of the kernels so, as an A100 would, or with
`AIMC_ARCH=90` before it as an H100.
"""

from __future__ import annotations

import functools
import os

os.environ.pop("TRITON_INTERPRET", None)  # which tests that were collected before may have set
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whose memory is not to be read from here

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from triton import backends
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import JITFunction

from benchmarks.compiled import compile_for
from benchmarks.host import Nowhere
from tests.ptx.memory import Memory
from tests.ptx.processor import Processor
from tests.ptx.program import read

ARCH = int(os.environ.get("AIMC_ARCH", "80"))
"""Compute capability times ten."""


class ToText(CUDABackend):
    """Triton's compiler without the last step, by which PTX becomes a GPU's own code."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any) -> None:
        """All steps but the last."""
        super().add_stages(stages, options, language)
        del stages["cubin"]

    @functools.lru_cache  # noqa: B019  # as Triton has it
    def hash(self) -> str:
        """Apart from what Triton keeps of other compilers."""
        return f"{super().hash()}-text"


class Emulated(Nowhere):
    """An A100, or an H100."""

    def __init__(self) -> None:
        super().__init__(ARCH)
        self.launcher_cls = lambda source, metadata: functools.partial(_launch, source, metadata)

    def load_binary(self, *about: Any) -> tuple[Any, Any, int, int, int]:
        """The kernel's text where a GPU has a module and a function in it."""
        text = about[1].decode()
        return text, text, 0, 0, 1024


@functools.lru_cache(maxsize=8)  # of a hundred thousand objects each
def _ready(text: str) -> Processor:
    return Processor(read(text))


def _launch(source: Any, metadata: Any, *how: Any) -> None:
    """As Triton's launcher is called: grid, stream, function, four things of no matter here, arguments."""
    grid, processor, arguments = how[:3], _ready(how[4]), how[9:]
    given = list(_given(tuple(source.signature.values()), arguments))
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    scratch = [0] * (len(processor.program.parameters) - len(given))  # which our kernels ask for none of
    numbers = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in given]
    processor.run(grid, [*numbers, *scratch], Memory(tensors), metadata.shared)


def _given(kind: Any, x: Any) -> Iterator[Any]:
    """Arguments that a kernel was not compiled for, out of their tuples."""
    if isinstance(kind, tuple):
        for of, part in zip(kind, x, strict=True):
            yield from _given(of, part)
    elif kind != "constexpr":
        yield x


def install() -> None:
    """From now on Triton's kernels run here, also where they are given tensors of the CPU."""
    from aimc.ops.triton import kernels, plan

    backends.backends["nvidia"] = replace(backends.backends["nvidia"], compiler=ToText)
    compile_for(Emulated())
    assert isinstance(kernels.forward_kernel, JITFunction), "the kernels are Triton's interpreter's"
    plan.interpreted = lambda: False  # compiled for a GPU


def pytest_configure() -> None:
    """As a plugin of pytest."""
    install()
