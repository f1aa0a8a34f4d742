"""`python -m train.evaluate`: perplexity of one checkpoint, clean and under non-idealities, over chips; or its scores
on tasks; alone or against the digital model."""

from __future__ import annotations

from .command import command_line
from .schema import EvaluationConfig


def evaluate(settings: EvaluationConfig) -> None:
    """Measure, show, and write results.json; for a text also results.csv and a figure.

    Raises:
        RunError: no such checkpoint, unusable text or tasks, or no write permission.
    """
    from . import evaluation, harness, tables  # seconds to import; a wrong config is refused before that
    from .files import require_writable
    from .lock import one_job
    from .memory import keep_freed_memory
    from .ranks import first_alone, join, together
    from .trainer_schema import TrainerConfig

    folder = settings.folder
    keep_freed_memory()
    state = join(TrainerConfig())
    say = tables.terminal() if state.is_main_process else tables.silent
    tasks = harness.load_tasks(settings)
    model = evaluation.model_of(settings.checkpoint, settings.nonideality)
    digital = evaluation.digital_of(settings, model) if settings.with_digital else None
    require_writable(folder)
    with one_job(folder, say, main_process=state.is_main_process), together():
        if not tasks or settings.with_perplexity:
            with first_alone(state):  # one process tokenises, the others find it done
                text, measurement = evaluation.text_of(settings, model.config, say)
            evaluation.measure(model, text, measurement, settings, digital, say)
        if tasks and state.is_main_process:
            harness.score(model, tasks, settings, digital, say)
    say(f"Results are in {folder}.")


main = command_line("evaluation", EvaluationConfig, evaluate)

if __name__ == "__main__":
    main()
