"""`python -m train.whole_chip`: what attention on gain cells and weights on static tiles cost, alone and together, and
as time passes."""

from __future__ import annotations

from .command import command_line
from .schema import WholeChipConfig


def measure(settings: WholeChipConfig) -> None:
    """Measure, show, and write whole_chip.json and two figures.

    Raises:
        RunError: no such checkpoint, unusable text, aihwkit missing, or no write permission.
    """
    from . import chip, chip_report, tables  # seconds to import; a wrong config is refused before that
    from .files import require_writable
    from .lock import one_job

    say, folder = tables.terminal(), settings.folder
    subject = chip.opened(settings)
    require_writable(folder)
    with one_job(folder, say):
        cost = chip.cost(subject)  # refused, where it is, before hours of measuring
        budget = chip.budget(subject, settings.since_programming_s, say)
        say(chip_report.budget_table(budget, settings.since_programming_s))
        chip_report.write(folder, settings, budget, {}, cost)  # the curves take most of the time, and can be stopped
        if settings.with_curve:
            curves = chip.curves(subject, say)
            say(chip_report.ageing_table(curves, budget["digital"].mean))
            chip_report.write(folder, settings, budget, curves, cost)
        say(chip_report.cost_lines(cost))
    say(f"Results and figures are in {folder}.")


main = command_line("whole_chip", WholeChipConfig, measure)

if __name__ == "__main__":
    main()
