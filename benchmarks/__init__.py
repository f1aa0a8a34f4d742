"""Speed and memory of the gain-cell operator and model against what one would use instead; `python -m benchmarks`, or
`make bench`.

A number is reported only if, in the same process and at the same shapes, the thing it belongs to computed the right
result.
"""
