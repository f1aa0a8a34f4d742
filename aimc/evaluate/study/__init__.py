"""Studies: which non-ideality costs how much, how large each may be, and the cheapest circuit that is good enough.

The pipeline and notebooks call it: a :class:`~aimc.evaluate.study.bench.Bench` measures one machine on one chip, a
:class:`~aimc.evaluate.study.runner.Runner` many, once each; `sensitivity`, `tolerance`, `specification`, `layers` and
`grid` ask it. It imports what measures one model, in `aimc.evaluate`, and everything below.
"""
