"""One run as a stage sees it: its settings, its text, the models it may start from, and how it trains and measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

import aimc
from aimc.calibrate.full_scales import depends_on_full_scales
from aimc.evaluate.ageing import ageing
from aimc.evaluate.chips import noise_of
from aimc.evaluate.measurement import Measurement
from aimc.hardware import Noise
from aimc.models.arrays import has_arrays, set_chip
from aimc.static.programming import DAY_S

from .alarms import tell_full_normaliser
from .callbacks import WandbLog
from .errors import RunError
from .generated import write_text
from .models import digest_of, load_analog
from .noise import FIRST_FRESH
from .pretrained import load_digital
from .ranks import everyone
from .recipe import NoiseTraining, Recipe
from .stages import STAGES
from .stages.stage import Stage, StageResult
from .streaming import Stream
from .tokens import TokenData, require_same_tokenizer
from .trainer import Training, train

if TYPE_CHECKING:
    from aimc.evaluate.perplexity import Perplexity

    from .schema import RunConfig


TOKENS_TO_FIT = 2048
"""Of the validation text, about, that the counters' full scales are fitted to."""
MOST_BATCHES = 4096
"""That are read before training by the clock, whose steps nobody knows; it goes through them again."""
HEARTBEAT = ".heartbeat.json"
"""In a run's output folder while it trains: how far it is, and when that was written."""


@dataclass(slots=True, kw_only=True)
class Run:
    """A run at one stage."""

    config: RunConfig
    data: TokenData
    context: int
    """Tokens a training sequence."""
    measurement: Measurement
    stage: Stage
    say: Callable[[Any], None]

    @property
    def text(self) -> Tensor:
        """The held-out text of all measurements, int64 `[N]`."""
        return self.data.tensor("test", self.measurement.tokens)

    @property
    def folder(self) -> Path:
        """Where the stage puts its model."""
        return self.config.folder / self.stage.folder

    @property
    def work(self) -> Path:
        """Where the stage keeps what it resumes from."""
        return self.config.folder / ".work" / self.stage.folder

    @property
    def device(self) -> torch.device:
        """Where its models compute: this process's accelerator if there is one and `trainer.device` allows it."""
        return PartialState().device

    @property
    def is_control(self) -> bool:
        """Whether its model is what analog ones are compared with, and trains by their recipes."""
        return self.stage.name == "control"

    def recipe(self, name: str) -> Recipe:
        """By which the stage trains: a recipe of the group `trainer`, with what is otherwise for the control.

        What analog models match layer by layer, at the learning rates of single blocks, the control reads as it is
        fine-tuned, at the full learning rate.
        """
        trainer = self.config.trainer
        recipe = trainer.recipe(name)
        if not self.is_control:
            return recipe
        if name == "match":
            kept = ("steps", "minutes", "batch_size", "accumulate", "log_every", "eval_every", "save_every")
            own = {field: getattr(recipe, field) for field in kept}
            recipe = replace(trainer.recipe("finetune"), min_lr_ratio=1.0, noise=NoiseTraining(), **own)
        return recipe if trainer.control_dropout is None else replace(recipe, dropout=trainer.control_dropout)

    def input(self, needed: str) -> Path:
        """The folder of another stage's model: this run's, or else the one that `previous` names.

        Raises:
            RunError: neither has it.
        """
        places = [Path(root) / STAGES[needed].folder for root in (self.config.output_dir, self.config.previous) if root]
        for place in places:
            if (place / "config.json").exists():
                return place
        does = "starts" if needed == self.stage.needs else "learns"
        raise RunError(
            f"stage {self.stage.name} {does} from the {needed} model, and there is none in"
            f" {' or '.join(map(str, places))}; run stage={needed} or stage=pipeline first"
        )

    def model_of(self, needed: str) -> PreTrainedModel:
        """Another stage's model, on the run's device.

        Raises:
            RunError: there is none, it cannot be loaded, or it reads other tokens than the run's text has.
        """
        folder = self.input(needed)
        require_same_tokenizer(folder, self.data.tokenizer)
        model = load_analog(folder) if STAGES[needed].analog else load_digital(str(folder), "input")
        return model.to(self.device)  # type: ignore[arg-type]

    def teacher(self, recipe: str | None = None) -> PreTrainedModel | None:
        """The digital model that a recipe, the stage's own unless named, draws the loss to; None: it does not."""
        name = self.teacher_name(recipe)
        return None if name is None else self.model_of(name)

    def teacher_name(self, recipe: str | None = None) -> str | None:
        """The stage whose model :meth:`teacher` is. The control cannot learn from itself."""
        wanted = self.recipe(recipe or self.stage.name)
        if not (wanted.has_teacher and wanted.steps) or not (self.stage.analog or self.config.trainer.distill_control):
            return None
        return wanted.teacher if self.stage.analog else "digital"

    def training_text(self) -> TokenData:
        """The run's text, with what the digital model wrote, where the stage trains on that."""
        config = self.config.data
        if not config.is_generated or self.stage.needs is None:
            return self.data
        folder = self.input("digital")
        written = write_text(
            lambda: load_digital(str(folder), "input"),
            digest_of(folder, "digital"),
            self.data,
            config,
            self.context,
            self.config.trainer.device,
            self.say,
        )
        return replace(self.data, written=written, share=config.generated.share)

    def batches(self) -> list[Tensor]:
        """Training text for measuring statistics: int64 `[B, T]` each, the same ones in every stage."""
        size, count = self.config.stage.calibration_batch_size, self.config.stage.calibration_batches
        return list(self._first(size * count, f"stage.calibration_batches={count} × {size}").view(count, size, -1))

    def sequences_to_fit(self) -> Tensor:
        """Training text that output projections are fitted to: int64 `[sequences, T]`, perhaps none."""
        count = self.config.stage.fit_sequences
        return self._first(count, f"stage.fit_sequences={count}:")

    def _first(self, count: int, asked: str) -> Tensor:
        """The first sequences of the training text, int64 `[count, T]`.

        Raises:
            RunError: it has not so many; `asked` says who wants them.
        """
        needed = count * self.context
        tokens = self.data.tensor("train", needed)
        if len(tokens) < needed:
            raise RunError(
                f"{asked} sequences of {self.context} tokens need {needed} training tokens and the text has"
                f" {len(tokens)}; ask for fewer"
            )
        return tokens.view(count, self.context)

    def own_batches(self) -> list[Tensor]:
        """Those of :meth:`batches` that this process measures statistics on; they are put together exactly."""
        batches, ranks = self.batches(), everyone()
        return [batches[number] for number in ranks.mine(range(len(batches)))] if len(batches) >= ranks.n else batches

    def sequences(self, recipe: str) -> list[Tensor]:
        """Training text of a recipe, in batches as it trains on them: int64 `[B, T]`, in an order drawn from the seed;
        as many as it has steps, or the whole text where that is less; by the clock :data:`MOST_BATCHES` at most."""
        wanted = self.config.trainer.recipe(recipe)
        steps = wanted.steps if wanted.minutes is None else min(wanted.steps, MOST_BATCHES)
        text = self.training_text().training_blocks(self.context, self.config.seed)
        size = wanted.batch_size * wanted.accumulate * PartialState().num_processes
        if isinstance(text, Stream):
            rows = [row["input_ids"] for row in islice(text, steps * size)]
            text.close()
            return [torch.stack(rows[i : i + size]) for i in range(0, len(rows), size)]
        order = torch.randperm(len(text), generator=torch.Generator().manual_seed(self.config.seed)).tolist()
        order = order[: steps * size]
        rows = [text[i]["input_ids"] for i in order]
        return [torch.stack(rows[i : i + size]) for i in range(0, len(rows), size)]

    def train(
        self, model: PreTrainedModel, recipe: str | None = None, teacher: PreTrainedModel | None = None
    ) -> list[dict[str, float]]:
        """Train in place by a recipe, the stage's own unless named; returns the log, see :func:`train`."""
        name, config = recipe or self.stage.name, self.config
        work = self.work if recipe is None else self.work / name
        in_wandb = config.logger.name == "wandb"
        training = Training(
            stage=self.stage.name,
            setting="trainer.finetune" if self.is_control and name == "match" else f"trainer.{name}",
            recipe=self.recipe(name),
            shared=config.trainer,
            context=self.context,
            seed=config.seed,
            data_seed=config.seed + STAGES[name].data_order,
            folder=work,
            run_name=f"{config.folder.name}-{self.stage.name}",
            callbacks=[WandbLog(config.logger.project, config.folder, work / "wandb.json")] if in_wandb else [],
            nonideality=config.nonideality,
            heartbeat=config.folder / HEARTBEAT,
            spikes=config.folder / "spikes" / (self.stage.name if recipe is None else f"{self.stage.name}-{name}"),
            say=self.say,
            again="the command without restart=true" if config.restart else "the same command",
        )
        data = self.training_text() if training.recipe.steps else self.data
        return train(model, data, training, teacher)

    def validate(self, model: PreTrainedModel) -> float:
        """Perplexity on the validation text in sequences as they are trained on."""
        text = self.data.tensor("valid", self.config.trainer.eval_tokens)
        return float(aimc.perplexity(model, text, context=self.context, stride=self.context, ranks=everyone()))

    def measure(self, model: PreTrainedModel) -> float:
        """Held-out perplexity, clean."""
        noise = aimc.Noise() if has_arrays(model) else None
        return self.measure_on_chip(model, noise, self.measurement.seed)

    def measure_on_chip(self, model: PreTrainedModel, nonideality: Noise | None, chip: int) -> float:
        """Held-out perplexity under non-idealities on the chip of that number; None: a digital model has neither."""
        how = self.measurement
        return float(
            aimc.perplexity(model, self.text, how, nonideality=nonideality, chips=1, seed=chip, ranks=everyone())
        )

    def clip_fractions(self, model: PreTrainedModel) -> dict[str, float]:
        """How often a value meets a bound of the hardware, on a batch of the training text; says where a normaliser's
        counter is full too often."""
        fractions = aimc.clip_fractions(model, self.batches()[:1])
        tell_full_normaliser(model, fractions, self.say)
        return fractions

    def train_on_hardware(self, result: StageResult, *, trained: bool) -> None:
        """Train a stage's model by the stage's own recipe on the run's hardware, counters fitted before that for the
        noise that it is trained under, if any, and behind it for the run's.

        Args:
            result: of the stage; gets the log and notes.
            trained: whether the model was trained on the counters that it has, see :func:`aimc.fit_full_scales`.
        """
        name, model = self.stage.name, result.model
        aimc.set_hardware(model, self.config.hardware)
        if self.recipe(name).noise.scale:
            self.fit_full_scales(model, result.notes, self.training_noise(name), trained=trained)
        result.history = self.train(model, teacher=self.teacher())
        self.fit_full_scales(model, result.notes, self.config.nonideality)

    @property
    def fits_full_scales(self) -> bool:
        """Whether the run's stage chooses the counters' full scales."""
        return self.stage.fits is not None and self.config.hardware.fits_counters

    def fit_full_scales(
        self, model: PreTrainedModel, notes: dict[str, Any], noise: Noise, *, trained: bool = True
    ) -> None:
        """Those of a model, where the stage chooses them, on a chip that is not measured; of one that was trained on
        the counters that it has only for a noise that depends on them."""
        if self.fits_full_scales and (depends_on_full_scales(noise) or not trained):
            with noise_of(model, Noise()):  # and its chip comes back
                set_chip(model, FIRST_FRESH)
                report = aimc.fit_full_scales(model, [self.text_to_fit()], nonideality=noise, trained=trained)
            self.say(str(report))
            notes["full scales"] = [*notes.get("full scales", []), str(report)]

    def training_noise(self, recipe: str) -> Noise:
        """That under which a recipe trains; none where it trains without."""
        return self.config.nonideality.scaled(self.config.trainer.recipe(recipe).noise.scale)

    def text_to_fit(self) -> Tensor:
        """Text that full scales are fitted to, int64 `[sequences, T]`: of what validates, for a model is surer of the
        text that it was trained on than of any other.

        Raises:
            RunError: of a streamed text less was kept.
        """
        wanted = max(TOKENS_TO_FIT // self.context, 1)
        tokens = self.data.tensor("valid", wanted * self.context)
        return tokens[: len(tokens) // self.context * self.context].view(-1, self.context)

    def measure_after_a_day(self, model: PreTrainedModel) -> Perplexity:
        """Held-out perplexity a day after static tiles were programmed, drift compensated, gain cells clean."""
        (day,) = ageing(
            model,
            self.text,
            self.measurement,
            times_s=[DAY_S],
            compensation=[True],
            nonideality=aimc.Noise(),
        )
        return day.perplexity
