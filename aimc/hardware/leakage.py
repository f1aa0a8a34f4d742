"""Retention: how stored voltages relax."""

from __future__ import annotations

from dataclasses import dataclass

from aimc.hardware.checks import check_fields, require, require_positive


@dataclass(slots=True, kw_only=True)
class Leakage:
    """Stored voltages relax exponentially, `V(Δ) = V_t + (V(0) − V_t)·exp(−Δ/τ)`, `Δ` = age in tokens × token time."""

    tau_s: float | None = None
    """Retention time constant τ in second; None: no leakage."""
    token_time_s: float | None = 1e-6
    """Time from one token to the next in second; None: layers of the model × `step_latency_s`, filled in by
    :func:`aimc.convert`."""
    step_latency_s: float = 1e-7
    """Latency of one attention step of one layer in second; used only where `token_time_s` is None."""
    target_v: float | None = None
    """Voltage V_t in volt to which the cells leak, e.g. 0 where the write transistor leaks to ground; None: the cell's
    rest voltage, `cell.offset_v`. Without leakage (`tau_s` None) it has no effect."""
    compensate: bool = False
    """Whether the digital softmax makes up for what a token of its age has lost: scores behind their ADC are divided,
    and pulses lengthened, by the nominal retained share. With `activation="softmax"` only. False: off."""

    def __post_init__(self) -> None:
        check_fields(self, "leakage")
        if self.tau_s is not None:
            require(
                self.tau_s > 0,
                "leakage.tau_s",
                self.tau_s,
                "a retention time is positive and finite",
                "use null (None) for a cell that does not leak",
            )
        if self.token_time_s is not None:
            require_positive("leakage.token_time_s", self.token_time_s, "second")
        require_positive("leakage.step_latency_s", self.step_latency_s, "second")
        if self.target_v is not None:
            require(
                self.target_v >= 0,
                "leakage.target_v",
                self.target_v,
                "a cell leaks to a voltage between ground and supply",
                "use 0 for ground, or null (None) for the cell's rest voltage",
            )

    def known_token_time_s(self) -> float:
        """`token_time_s`, where it is known.

        Raises:
            ConfigError: it is None: left to a model.
        """
        require(
            self.token_time_s is not None,
            "leakage.token_time_s",
            None,
            "the time of a token is the model's layers × leakage.step_latency_s, and this description leaves it open",
            "give it in second; aimc.convert works it out for the layers of a model",
        )
        return self.token_time_s  # type: ignore[return-value]  # required above

    @property
    def decay_per_token(self) -> float:
        """λ, dimensionless: the stored signal falls by exp(−λ) per token; 0 without leakage."""
        return 0.0 if self.tau_s is None else self.known_token_time_s() / self.tau_s
