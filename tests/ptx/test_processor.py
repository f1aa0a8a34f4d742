"""The processor of PTX, on lines written by hand: it computes what the PTX ISA says, and refuses what is wrong.

The kernels that Triton compiles run on it in tests/ops/test_triton_compiled.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ptx.arithmetic import of_bfloat16, to_bfloat16
from tests.ptx.memory import AccessError, Memory, Shared
from tests.ptx.processor import Processor
from tests.ptx.program import read
from tests.ptx.warps import wide_product

FRAME = """
.version 8.8
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .f32 kernel_param_2
)
.reqntid 64
{{
	.reg .pred 	%p<9>;
	// the address of each thread's four bytes
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.param.b32 	%r3, [kernel_param_2];
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	mad.lo.s32 	%r1, %r2, 64, %r1;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd1, %rd1, %rd3;
	add.s64 	%rd2, %rd2, %rd3;
	ld.global.b32 	%r10, [%rd1];
{lines}
	st.global.b32 	[%rd2], %r20;
	ret;

}}
"""


def computed(lines: str, x: torch.Tensor, number: float = 0.0) -> torch.Tensor:
    """What a thread for each number `%r10` of `x` leaves in `%r20`."""
    out = torch.zeros_like(x)
    arguments = [x.data_ptr(), out.data_ptr(), number]
    Processor(read(FRAME.format(lines=lines))).run((len(x) // 64, 1, 1), arguments, Memory([x, out]), 4096)
    return out


def numbers(n: int = 128) -> torch.Tensor:
    return 8 * torch.randn(n, generator=torch.Generator().manual_seed(0))


def words(n: int = 128) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (n,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("fma.rn.f32 %r20, %r10, %r3, 0f3F800000;", lambda x: x * 3 + 1),
        ("max.f32 %r20, %r10, 0f7FC00000;", lambda x: x),  # the one of two that is a number
        (
            "setp.lt.f32 %p1, %r10, %r3;\n@%p1 neg.f32 %r10, %r10;\nmov.b32 %r20, %r10;",
            lambda x: torch.where(x < 3, -x, x),
        ),
        ("setp.ltu.f32 %p1, 0f7FC00000, %r10;\nselp.f32 %r20, %r10, 0f00000000, %p1;", lambda x: x),
        ("ex2.approx.f32 %r20, %r10;", torch.exp2),
        ("cvt.rni.f32.f32 %r20, %r10;", torch.round),
        ("cvt.rzi.s32.f32 %r20, %r10;\ncvt.rn.f32.s32 %r20, %r20;", torch.trunc),
        ("cvt.rn.bf16.f32 %rs1, %r10;\ncvt.f32.bf16 %r20, %rs1;", lambda x: x.bfloat16().float()),
        (
            "cvt.rn.bf16x2.f32 %r11, %r10, %r3;\nmov.b32 {%rs1, %rs2}, %r11;\ncvt.f32.bf16 %r20, %rs2;",
            lambda x: x.bfloat16().float(),
        ),
        (
            "cvt.rn.f16x2.f32 %r11, %r3, %r10;\nmax.f16x2 %r11, %r11, 0;\nmov.b32 {%rs1, %rs2}, %r11;\n"
            "cvt.f32.f16 %r20, %rs1;",
            lambda x: x.half().float().clamp(min=0),
        ),
        (
            "cvt.rn.bf16x2.f32 %r11, %r3, %r10;\nsetp.ge.bf16x2 %p1|%p2, %r11, 0;\nselp.f32 %r20, %r3, %r10, %p1;",
            lambda x: torch.where(x >= 0, 3.0, x),
        ),
    ],
)
def test_numbers(lines, expected) -> None:  # type: ignore[no-untyped-def]
    x = numbers()
    assert torch.allclose(computed(lines, x, 3.0), expected(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("shr.u32 %r20, %r10, 15;", lambda x: (x % 2**32) // 2**15),
        ("shr.s32 %r20, %r10, 15;", lambda x: x // 2**15),
        ("shr.u32 %r20, %r10, 32;", lambda x: 0 * x),
        ("bfe.s32 %r20, %r10, 4, 3;", lambda x: (x // 16 + 4) % 8 - 4),
        ("mul.lo.s32 %r20, %r10, 16;", lambda x: _signed(16 * x)),
        ("mul.wide.s32 %rd9, %r10, -3;\nmov.b64 {_, %r20}, %rd9;", lambda x: -3 * x // 2**32),
        ("mul.hi.s32 %r20, %r10, -3;", lambda x: -3 * x // 2**32),
        ("div.s32 %r20, %r10, -7;", lambda x: torch.div(x, -7, rounding_mode="trunc")),
        (
            "prmt.b32 %r20, %r10, 1, 0x0124;",
            lambda x: _signed(1 + (x >> 16) % 256 * 2**8 + (x >> 8) % 256 * 2**16 + x % 256 * 2**24),
        ),
        ("xor.b32 %r20, %r10, -1;", lambda x: -1 - x),
    ],
)
def test_words(lines, expected) -> None:  # type: ignore[no-untyped-def]
    x = words()
    assert computed(lines, x).tolist() == expected(x.long()).tolist()


def _signed(x: torch.Tensor) -> torch.Tensor:
    """Of 32 bits."""
    return (x + 2**31) % 2**32 - 2**31


def test_a_loop_goes_round_as_often_as_its_block_asks() -> None:
    lines = "mov.b32 %r20, 0;\n$L__BB0_1:\nadd.s32 %r20, %r20, %r10;\nadd.s32 %r2, %r2, -1;\n"
    x = words()
    got = computed(lines + "setp.ge.s32 %p1, %r2, 0;\n@%p1 bra $L__BB0_1;", x)
    times = torch.arange(128) // 64 + 1
    assert got.tolist() == _signed(times * x.long()).tolist()


def test_threads_see_one_another() -> None:
    x = words()
    assert computed("shfl.sync.bfly.b32 %r20, %r10, 3, 31, -1;", x).equal(x[torch.arange(128) ^ 3])
    assert computed("shfl.sync.idx.b32 %r20, %r10, 5, 31, -1;", x).equal(x[torch.arange(128) // 32 * 32 + 5])


def test_what_a_thread_shares_another_reads() -> None:
    lines = "and.b32 %r4, %r1, 63;\nshl.b32 %r4, %r4, 2;\nst.shared.b32 [%r4+256], %r10;\nbar.sync 0;\n"
    x = words()
    got = computed(lines + "xor.b32 %r4, %r4, 252;\nld.shared.b32 %r20, [%r4+256];", x)
    assert got.equal(x.view(2, 64).flip(1).flatten())


def test_a_product_of_matrices_is_laid_out_as_the_isa_has_it() -> None:
    """ "Matrix Fragments for mma.m16n8k16" for numbers of 16 bits, entry by entry, as the formulas stand there."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(16, 16, generator=generator).bfloat16(), torch.randn(16, 8, generator=generator).bfloat16()
    given = torch.zeros(6, 32, 2, dtype=torch.bfloat16)
    for lane in range(32):
        group, of_group = lane // 4, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            given[i // 2, lane, i % 2] = a[row, of_group * 2 + (i & 1) + (8 if i >= 4 else 0)]
        for i in range(4):
            given[4 + i // 2, lane, i % 2] = b[of_group * 2 + (i & 1) + (8 if i >= 2 else 0), group]
    x = torch.cat([register.view(torch.int32).flatten().repeat(2) for register in given])
    registers = "".join(f"ld.global.b32 %r{11 + i}, [%rd1+{256 * i}];\n" for i in range(6))
    product = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r30, %r31, %r32, %r33}, {%r11, %r12, %r13, %r14},"
        " {%r15, %r16}, {%r3, %r3, %r3, %r3};\n"
    )
    expected = a.float() @ b.float() + 0.5
    for i in range(4):
        out = torch.zeros(64)
        program = Processor(read(FRAME.format(lines=registers + product + f"mov.b32 %r20, %r3{i};")))
        program.run((1, 1, 1), [x.data_ptr(), out.data_ptr(), 0.5], Memory([x, out]), 0)
        for lane in range(32):
            row, column = lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)
            assert out[lane] == out[lane + 32] == pytest.approx(expected[row, column].item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_fragments_are_loaded_as_the_isa_has_it(transposed: bool) -> None:
    """Of the matrix whose rows the first eight threads point to, each thread has two neighbours of one row; with
    `.trans` of one column."""
    x = torch.arange(64, dtype=torch.int32) * 65536 + torch.arange(64, dtype=torch.int32)  # `[8 rows, 4]` pairs
    x[:32] = torch.tensor([2 * i + 65536 * (2 * i + 1) for i in range(32)])
    lines = (
        "shl.b32 %r5, %r1, 2;\nst.shared.b32 [%r5], %r10;\nbar.sync 0;\nand.b32 %r4, %r1, 7;\nshl.b32 %r4, %r4, 4;\n"
        f"ldmatrix.sync.aligned.m8n8.x1{'.trans' if transposed else ''}.shared.b16 {{%r20}}, [%r4];"
    )
    got = computed(lines, x)[:32].numpy().view(np.uint16).reshape(32, 2)
    store = lines.replace("ldmatrix", "stmatrix").replace("{%r20}, [%r4]", "[%r4+512], {%r20}")
    put = computed(f"{lines}\n{store.splitlines()[-1]}\nld.shared.b32 %r20, [%r5+512];", x)
    assert put[:32].equal(x[:32])  # where it was put is what it was loaded from
    matrix = np.arange(64).reshape(8, 8)
    seen = matrix.T if transposed else matrix
    assert (got == [[seen[lane // 4, lane % 4 * 2 + i] for i in range(2)] for lane in range(32)]).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["rows of K", "columns side by side"])
@pytest.mark.parametrize("in_registers", [False, True])
def test_a_product_of_four_warps_finds_its_matrices(in_registers: bool, transposed: bool) -> None:
    """In rows of 128 bytes, whose 16-byte chunks are in the order of their number xor the row's; each second factor has
    eight of its rows, or of its columns, a kilobyte apart."""
    generator = np.random.default_rng(3)
    a, b = (to_bfloat16(generator.standard_normal((n, 16), dtype=np.float32)) for n in (64, 64))
    shared, wide = Shared(2**15), to_bfloat16(generator.standard_normal((2**14,), dtype=np.float32))
    shared.data[:] = wide.view(np.uint8)
    words, start_a, start_b = shared.data.view(np.uint16), 8192, 16384

    def put_at(start: int, row: int, column: int, number: np.uint16) -> None:
        group, chunk = row // 8, column // 8 ^ row % 8
        words[(start + 1024 * group + 128 * (row % 8) + 16 * chunk) // 2 + column % 8] = number

    for i, k in np.ndindex(64, 16):
        put_at(start_a, i, k + 16, a[i, k])  # behind others of its row
        put_at(start_b, *((k, i) if transposed else (i, k)), b[i, k])
    described = [at >> 4 | 1 << 16 | 1024 >> 4 << 32 | 1 << 62 for at in (start_a + 32, start_b)]
    left, right = (np.full(128, word, dtype=np.uint64) for word in described)
    lane, warp = np.arange(128) % 32, np.arange(128) // 32
    row, column = 16 * warp + lane // 4, 2 * (lane % 4)
    halves = [np.stack([a[row + 8 * (i % 2), column + 8 * (i // 2) + j] for j in (0, 1)], axis=1) for i in range(4)]
    given = [np.full(128, 0.5, dtype=np.float32).view(np.uint32)] * 32
    first = [x.view(np.uint32)[:, 0] for x in halves] if in_registers else [left]
    got = wide_product("bf16", shared, first, right, given, [False, transposed])
    expected = of_bfloat16(a) @ of_bfloat16(b).T + 0.5
    for i, x in enumerate(got):
        at = row + 8 * (i % 4 // 2), column + 8 * (i // 4) + i % 2
        assert np.allclose(x.view(np.float32), expected[at], rtol=1e-5, atol=1e-5)


def test_what_is_copied_and_what_is_not_given_is_zero() -> None:
    """Sixteen bytes by one thread in four, of which the second half of the threads gives eight."""
    lines = (
        "and.b32 %r4, %r1, 3;\nsetp.eq.b32 %p1, %r4, 0;\nshl.b32 %r5, %r1, 2;\nsetp.lt.u32 %p2, %r1, 32;\n"
        "selp.b32 %r6, 16, 8, %p2;\n@%p1 cp.async.cg.shared.global [%r5], [%rd1], 16, %r6;\n"
        "cp.async.commit_group;\ncp.async.wait_group 0;\nbar.sync 0;\nld.shared.b32 %r20, [%r5];"
    )
    x = words(64)
    expected = x.clone()
    expected[32:].view(8, 4)[:, 2:] = 0
    assert computed(lines, x).equal(expected)


@pytest.mark.parametrize(
    ("lines", "error", "says"),
    [
        ("ld.global.b32 %r20, [%rd1+4];", AccessError, "of no tensor"),
        ("setp.lt.u32 %p1, %r1, 5;\n@%p1 ld.global.b32 %r20, [%rd1+2];", AccessError, "begin at no multiple"),
        ("setp.lt.u32 %p1, %r1, 5;\n@%p1 ld.global.v2.b32 {%r20, %r21}, [%rd1];", AccessError, "8 bytes are read"),
        ("shl.b32 %r4, %r1, 2;\nld.shared.b32 %r20, [%r4+4092];", AccessError, "4096 bytes that they share"),
        ("setp.lt.u32 %p1, %r1, 5;\n@%p1 bra $L__BB0_1;\nmov.b32 %r20, 0;\n$L__BB0_1:", RuntimeError, "part here"),
        ("popc.b32 %r20, %r10;", NotImplementedError, "popc.b32"),
        ("max.NaN.f32 %r20, %r10, %r3;", NotImplementedError, "max.NaN.f32"),
        ("cvt.rz.f32.s32 %r20, %r10;", NotImplementedError, "cvt.rz.f32.s32"),
        ("ld.local.b32 %r20, [%r1];", NotImplementedError, "ld.local"),
        ("mov.u32 %r20, %laneid;", NotImplementedError, "laneid"),
    ],
)
def test_what_is_wrong_is_refused(lines: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        computed(lines, numbers(64))


def test_nobody_reads_where_the_guard_forbids_it() -> None:
    """Behind the end of the text, say."""
    lines = "mov.b32 %r20, 0;\nsetp.lt.u32 %p1, %r1, 63;\n@%p1 ld.global.b32 %r20, [%rd1+4];"
    x = words(64)
    assert computed(lines, x).equal(torch.cat([x[1:], torch.zeros(1, dtype=torch.int32)]))
