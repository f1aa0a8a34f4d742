"""What a study measures on: the checkpoint, its text, and a few steps of training where they are asked for."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.study.bench import Bench
from aimc.hardware import Hardware
from aimc.models.arrays import has_arrays

from .errors import RunError
from .models import digest_of, load_any
from .study_model import model_of
from .tokens import TokenData, prepare, require_vocabulary
from .windows import placed

if TYPE_CHECKING:
    from .study_schema import StudyConfig

SEQUENCES = 8
"""Of a batch on which scalers are matched."""


def open_bench(settings: StudyConfig) -> Bench:
    """The checkpoint on its text; also what each process of a study does for itself.

    Raises:
        RunError: no such checkpoint, a digital one, or unusable text.
    """
    place = model_of(settings)
    model = load_any(str(place))
    if not has_arrays(model):
        raise RunError(
            f"checkpoint={settings.checkpoint}: its attention is digital, so nothing could be non-ideal; give a model"
            " on gain cells, such as checkpoints/direct/finetuned"
        )
    measurement = placed(settings.measure, settings.data, model.config)
    context = measurement.context or 1
    data = prepare(settings.data, settings.checkpoint, context)
    require_vocabulary(data.tokenizer, model.config, settings.checkpoint)
    return Bench(
        model,
        data.tensor(settings.split, measurement.tokens),
        measurement,
        name=digest_of(place, "study"),
        batches=_batches(data, settings.calibration_batches, context),
        train=_trainer(settings, data, context) if settings.training.steps else None,
        training=asdict(settings.training) | {"seed": settings.seed, "text": data.fingerprint},
    )


def _batches(data: TokenData, count: int, context: int) -> list[Tensor]:
    size = SEQUENCES * context
    parts = data.tensor("train", count * size).split(size) if count else []
    return [part.view(-1, context) for part in parts if len(part) == size]


class _Training:
    """Trains a model in place on a machine, without and then with its noise, as the recipe has it."""

    def __init__(self, settings: StudyConfig, data: TokenData, context: int) -> None:
        self.settings, self.data, self.context = settings, data, context

    def __call__(self, model: PreTrainedModel, machine: Hardware) -> None:
        import aimc

        from .trainer import Training, train
        from .trainer_schema import TrainerConfig

        quiet = replace(machine, noise=aimc.Noise())
        aimc.set_hardware(model, quiet)
        with tempfile.TemporaryDirectory() as folder:
            training = Training(
                stage="study",
                setting="training",
                recipe=self.settings.training,
                shared=TrainerConfig(device="cpu"),
                context=self.context,
                seed=self.settings.seed,
                data_seed=self.settings.seed,
                folder=Path(folder),
                nonideality=machine.noise,
            )
            train(model, self.data, training)
        aimc.set_hardware(model, machine)
        model.eval()


def _trainer(settings: StudyConfig, data: TokenData, context: int) -> _Training:
    return _Training(settings, data, context)


def seconds_of_training(settings: StudyConfig, bench: Bench, seconds_a_pass: float) -> float:
    """About how long a point trains: a step is three passes over its tokens."""
    context = bench.context
    stride = bench.measurement.stride or max(1, context // 2)
    recipe = settings.training
    tokens = 3 * recipe.steps * recipe.batch_size * recipe.accumulate * context
    return seconds_a_pass * tokens / (len(bench.tokens) * context / stride)
