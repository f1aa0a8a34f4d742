"""To which class an operator belongs: by the part of the model that it runs in, then by its name.

The part comes first, because the same product is a projection in one place and attention in another. What a part does
itself, outside its projections, convolutions and norms, is its own: in attention that is scores, softmax, rotation of
positions and the growing of the cache; in a state-space mixer discretisation, recurrence and gates. A depthwise
convolution is a convolution, and so is all that a mixer without a recurrence does around its Fourier transforms.
"""

from __future__ import annotations

import re

PRODUCT, CONVOLUTION, SCAN, ATTENTION, NORMALISATION, ELEMENTWISE, EMBEDDING, OTHER, UNCLASSIFIED, HOST = CLASSES = (
    "matrix product",
    "convolution/FFT",
    "scan",
    "attention",
    "normalisation",
    "elementwise",
    "embedding",
    "other",
    "unclassified",
    "between operators",
)
"""Every class, in the order of the tables. `other`: known operators that move, make or view data. `unclassified`: names
that are not known here. `between operators`: Python and dispatch, time of the host alone."""

MIXER = "mixer"
"""A part that is a scan where it holds no Fourier transform, and a convolution where it does."""
PARTS = (PRODUCT, CONVOLUTION, SCAN, ATTENTION, NORMALISATION, EMBEDDING, MIXER)
"""What a part of a model can be, see :mod:`aimc.evaluate.characterise.scopes`."""

_ALWAYS = (
    (CONVOLUTION, re.compile(r"conv|_?fft|stft")),
    (ATTENTION, re.compile(r"scaled_dot_product|flash_attention|efficient_attention|flex_attention|_fmha")),
    (NORMALISATION, re.compile(r"(layer|rms|batch|group)_norm")),
    (EMBEDDING, re.compile(r"embedding")),
)
"""Operators that are what they are wherever they run."""
_PRODUCTS = re.compile(
    r"^(addmm|mm|bmm|baddbmm|addbmm|matmul|linear|einsum|mv|addmv|dot|tensordot|_int_mm|_scaled_mm)_?$"
)
_MOVES = re.compile(
    r"^_?(copy|to_copy|to|cat|stack|view|reshape|t|transpose|permute|slice|select|expand|expand_as|empty|zeros|ones|new|"
    r"fill|zero|contiguous|clone|as_strided|unsqueeze|squeeze|narrow|split|chunk|unbind|index|gather|scatter|arange|full|"
    r"repeat|resize|item|local_scalar|is_nonzero|lift|detach|alias|pad|constant_pad|flip|roll|triu|tril|diagonal|diff|"
    r"take|masked_select|nonzero|unfold|movedim|swapaxes|numpy_T|mT|flatten|unflatten|view_as|resolve|type_as|set|"
    r"pin_memory|record_stream|movedim|eye|rand|random|empty_strided|unsafe_view|reshape_alias|has_same|values)(_|$)"
)
_ELEMENTWISE = re.compile(
    r"^_?(add|sub|rsub|mul|div|true_divide|floor|ceil|round|trunc|remainder|fmod|neg|abs|sign|exp|expm1|log|log1p|log2|pow|"
    r"float_power|sqrt|rsqrt|square|reciprocal|sin|cos|tanh|sigmoid|silu|gelu|relu|mish|leaky_relu|elu|hardswish|softplus|"
    r"hardtanh|erf|where|masked_fill|clamp|clip|minimum|maximum|min|max|amin|amax|sum|mean|prod|cumsum|cumprod|logsumexp|"
    r"softmax|log_softmax|safe_softmax|norm|linalg|var|std|eq|ne|lt|le|gt|ge|logical|bitwise|and|or|xor|not|invert|isin|"
    r"isnan|isinf|isfinite|any|all|argmax|argmin|topk|sort|lerp|addcmul|addcdiv|dropout|complex|real|imag|conj|polar|"
    r"view_as_complex|view_as_real|angle|outer|ger|glu|threshold|atan2|nan_to_num|searchsorted|bucketize|histc|__.*__)(_|$)"
)
_RUNTIME = re.compile(r"^(cuda|cu[A-Z]|hip)")
"""Calls of a device's runtime, which belong to the operator that makes them."""


def is_fft(name: str) -> bool:
    """Whether an operator is a Fourier transform."""
    return "fft" in name


def is_product(name: str) -> bool:
    """Whether an operator is a matrix product."""
    return _PRODUCTS.match(base_name(name)) is not None


def base_name(name: str) -> str:
    """`aten::_unsafe_view` is `_unsafe_view`."""
    return name.rpartition("::")[2]


def operator_class(name: str, part: str | None, inherited: str | None = None) -> str:
    """The class of one operator.

    Args:
        name: as the profiler calls it, `aten::addmm`.
        part: innermost part of the model around it, one of :data:`PARTS`; None: none.
        inherited: class of the operator that calls it, which it shares if that says what it is for; None: none calls
            it.

    Returns:
        One of :data:`CLASSES`, or :data:`MIXER`, which is decided when the part has ended.
    """
    name = base_name(name)
    if inherited not in (None, OTHER, UNCLASSIFIED, ELEMENTWISE):
        return str(inherited)
    if _RUNTIME.match(name) and inherited is not None:
        return inherited
    for found, pattern in _ALWAYS:
        if pattern.search(name):
            return found
    if part is not None:
        return part
    if is_product(name):
        return PRODUCT
    if _MOVES.match(name):
        return inherited or OTHER
    if _ELEMENTWISE.match(name):
        return ELEMENTWISE
    return inherited or UNCLASSIFIED
