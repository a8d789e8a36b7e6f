# mypy: allow-untyped-defs, allow-incomplete-defs
"""The row kernels in Triton: one program per row.

Letters: T tokens (rows), V vocabulary; a block is [N, W] columns of a row, N vectors of the W elements that one thread
loads at once (16 bytes). With y = softcap tanh(logits / softcap) (softcap 0: y = logits), m = max y, d = y - m <= 0:

    q_j = exp(d_j / temperature)    s = sum q    e = sum q d
    logp = d_y / temperature - log s    entropy = log s - e / (s temperature)
    grad_j = dy_j/dlogits_j (slope (onehot_j - p_j) - entropy_slope p_j (z_j - lse + entropy))
           = dy_j/dlogits_j q_j (a + b d_j), and at the target apart

`logprobs` reads a row once, with four programs on a multiprocessor. `loss` and `dlogits` read it twice and write it
once. The second read should hit L2, which holds a bfloat16 row of 152,064 for each of the 132
multiprocessors of an H200 (40 MB of 50): a wide row takes so many registers that a multiprocessor holds one at a time.
No figure here was measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Modes, Results, Scalars, TokenArguments
from .triton_objective import INF, LOG2_E, loss_terms, row_arguments, untrained_terms
from .triton_tokens import TritonTokens

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
FAR = tl.constexpr(-1e30)
"""Acts as -inf below a maximum, but 0 * FAR is 0."""
STAGES = tl.constexpr(4)
"""Three blocks of a wide row are in flight while one is processed (cp.async)."""

INTERPRETED = triton.knobs.runtime.interpret
"""Read once, as Triton does where a kernel is defined; torch.compile can't trace the lookup."""

# ---- columns of a row ------------------------------------------------------------------------------------------------


@triton.jit
def _below(y, m):
    """y - m, and FAR at least. NaN passes."""
    return tl.maximum(y - m, FAR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tanh(x):
    # 1 - 2 / (exp(2x) + 1) cancels near 0. Odd minimax polynomial, relative error 2^-29 on |x| < 0.55.
    x2 = x * x
    near = 0.021071678 * x2 - 0.0062742396 * x2 * x2
    near = x + x * x2 * (-0.33333316 + x2 * (0.13332586 + x2 * (near - 0.053852309)))
    far = 1.0 - 2.0 / (tl.exp2(tl.abs(x) * (2 * LOG2_E)) + 1.0)
    return tl.where(tl.abs(x) < 0.55, near, tl.where(x < 0, -far, far))


@triton.jit
def _cap(x, softcap, SOFTCAP: tl.constexpr):
    x = x.to(tl.float32)
    if SOFTCAP:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def _cap_slope(y, softcap, SOFTCAP: tl.constexpr):
    """dy/dlogits, from y."""
    if SOFTCAP:
        return 1.0 - (y / softcap) * (y / softcap)
    else:
        return 1.0


@triton.jit
def _row(pointer, row, stride, W: tl.constexpr, SHIFTED: tl.constexpr):
    """Start of the first block of a row, and the number of columns before the row. If the tensor is aligned, blocks are
    aligned to 16 bytes even where rows are not. Triton itself sees that of a stride only if 16 divides it."""
    start = row.to(tl.int64) * stride
    lead = 0
    if SHIFTED:
        lead = (start % W).to(tl.int32)
        start -= lead
    return pointer + tl.multiple_of(start, W), lead


@triton.jit
def _positions(block, N: tl.constexpr, W: tl.constexpr):
    return block * (N * W) + tl.arange(0, N)[:, None] * W + tl.arange(0, W)[None, :]


@triton.jit
def _inside(at_NW, lead, vocab):
    return (at_NW >= lead) & (at_NW < lead + vocab)


@triton.jit
def _target(row_ptr, lead, vocab, target, softcap, SOFTCAP: tl.constexpr):
    """y of the target; NaN if the target is outside the vocabulary."""
    inside = (target >= 0) & (target < vocab)
    return _cap(tl.load(row_ptr + lead + target, mask=inside, other=float("nan")), softcap, SOFTCAP)


# ---- statistics of a row: the first read -----------------------------------------------------------------------------


@triton.jit
def _online(y_NW, m_N, s_N, e_N, k):
    """m, s and e with one more block; each vector has its own, so that no thread waits for another."""
    max_N = tl.maximum(m_N, tl.max(y_NW, 1))
    d_NW = _below(y_NW, max_N[:, None])
    q_NW = tl.exp2(d_NW * k)
    moved_N = _below(m_N, max_N)
    r_N = tl.exp2(moved_N * k)
    return max_N, s_N * r_N + tl.sum(q_NW, 1), (e_N + s_N * moved_N) * r_N + tl.sum(q_NW * d_NW, 1)


@triton.jit
def _ragged(blocks, SHIFTED: tl.constexpr):
    """First index and step of the partial blocks of a row: the last block, and the first one if rows are shifted.
    Full blocks are those before the last, from SHIFTED on."""
    first = blocks - 1
    if SHIFTED:
        first = 0
    return first, tl.maximum(blocks - 1, 1)


@triton.jit
def _statistics(
    row_ptr, lead, vocab, k, softcap, SOFTCAP: tl.constexpr, SHIFTED: tl.constexpr, N: tl.constexpr, W: tl.constexpr
):
    """m, s and e of a row. k: log2(e) / temperature."""
    m_N = tl.full([N], LOWEST, tl.float32)
    s_N = tl.zeros([N], tl.float32)
    e_N = tl.zeros([N], tl.float32)
    blocks = tl.cdiv(lead + vocab, N * W)
    first, step = _ragged(blocks, SHIFTED)
    for block in range(first, blocks, step):
        at_NW = _positions(block, N, W)
        inside_NW = _inside(at_NW, lead, vocab)
        x_NW = tl.load(row_ptr + at_NW, mask=inside_NW, other=0.0)
        y_NW = tl.where(inside_NW, _cap(x_NW, softcap, SOFTCAP), -INF)
        m_N, s_N, e_N = _online(y_NW, m_N, s_N, e_N, k)
    for block in tl.range(1 if SHIFTED else 0, blocks - 1, num_stages=STAGES):
        x_NW = tl.load(row_ptr + _positions(block, N, W))
        m_N, s_N, e_N = _online(_cap(x_NW, softcap, SOFTCAP), m_N, s_N, e_N, k)
    m = tl.max(m_N, 0)
    moved_N = _below(m_N, m)
    r_N = tl.exp2(moved_N * k)
    return m, tl.sum(s_N * r_N, 0), tl.sum((e_N + s_N * moved_N) * r_N, 0)


@triton.jit
def _logp_entropy(y, m, s, e, temperature):
    """(logp, entropy, log s)."""
    log_s = tl.log(s)
    return (y - m) / temperature - log_s, log_s - e / (s * temperature), log_s


# ---- gradient of a row: the second read, and the write ---------------------------------------------------------------


@triton.jit
def _coefficients(y, m, s, log_s, entropy, slope, entropy_slope, temperature, softcap, SOFTCAP: tl.constexpr):
    """a, b, and the gradient at the target. Its two parts nearly cancel, so they are added before rounding."""
    d = _below(y, m)
    q = tl.exp2(d * (LOG2_E / temperature))
    a = -(slope + entropy_slope * (entropy - log_s)) / (s * temperature)
    b = -entropy_slope / (s * temperature * temperature)
    pull = slope * ((s - q) / s) - entropy_slope * (q / s) * (d / temperature - log_s + entropy)
    return a, b, pull / temperature * _cap_slope(y, softcap, SOFTCAP)


@triton.jit
def _gradient(y_NW, m, a, b, k, softcap, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr):
    if ENTROPY:
        d_NW = _below(y_NW, m)
        g_NW = tl.exp2(d_NW * k) * (a + b * d_NW)
    else:
        g_NW = tl.exp2((y_NW - m) * k) * a
    return g_NW * _cap_slope(y_NW, softcap, SOFTCAP)


@triton.jit
def _write_gradient(
    grad_ptr,
    row_ptr,
    lead,
    vocab,
    target,
    at_target,
    m,
    a,
    b,
    k,
    softcap,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    SHIFTED: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    """A block is loaded before it is stored, and no block is loaded twice: the gradient may overwrite the logits.
    ENTROPY: b may be non-zero."""
    blocks = tl.cdiv(lead + vocab, N * W)
    first, step = _ragged(blocks, SHIFTED)
    if (a != 0) | (b != 0):
        for block in range(first, blocks, step):
            at_NW = _positions(block, N, W)
            inside_NW = _inside(at_NW, lead, vocab)
            x_NW = tl.load(row_ptr + at_NW, mask=inside_NW, other=0.0, eviction_policy="evict_first")
            g_NW = _gradient(_cap(x_NW, softcap, SOFTCAP), m, a, b, k, softcap, SOFTCAP, ENTROPY)
            tl.store(grad_ptr + at_NW, g_NW, mask=inside_NW, eviction_policy="evict_first")
        for i in tl.range(1, blocks - (1 if SHIFTED else 0), num_stages=STAGES):
            at_NW = _positions(blocks - 1 - i, N, W)  # backwards: the blocks read last are the likeliest to be in L2
            x_NW = tl.load(row_ptr + at_NW, eviction_policy="evict_first")
            g_NW = _gradient(_cap(x_NW, softcap, SOFTCAP), m, a, b, k, softcap, SOFTCAP, ENTROPY)
            tl.store(grad_ptr + at_NW, g_NW, eviction_policy="evict_first")
    else:
        zero_NW = tl.zeros([N, W], tl.float32)
        for block in range(first, blocks, step):
            at_NW = _positions(block, N, W)
            tl.store(grad_ptr + at_NW, zero_NW, mask=_inside(at_NW, lead, vocab), eviction_policy="evict_first")
        for block in range(1 if SHIFTED else 0, blocks - 1):
            tl.store(grad_ptr + _positions(block, N, W), zero_NW, eviction_policy="evict_first")
    tl.debug_barrier()  # another thread has just written the target's column
    tl.store(grad_ptr + lead + target, at_target, mask=(target >= 0) & (target < vocab))


# ---- kernels ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=["targets"])
def _loss(
    logits,
    grad,
    targets,
    results,
    stride,
    grad_stride,
    vocab,
    tokens,
    scalars,
    MODES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    SHIFTED: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr, lead = _row(logits, row, stride, W, SHIFTED)
    target = tl.load(targets + row)
    weight = tl.load(tokens.weight + row)
    temperature, softcap = scalars.temperature, scalars.softcap
    k = LOG2_E / temperature
    zero = tl.full((), 0.0, tl.float32)
    m, a, b, at_target = zero, zero, zero, zero
    if weight != 0:
        y = _target(row_ptr, lead, vocab, target, softcap, SOFTCAP)
        arguments = row_arguments(row, tokens)
        m, s, e = _statistics(row_ptr, lead, vocab, k, softcap, SOFTCAP, SHIFTED, N, W)
        logp, entropy, log_s = _logp_entropy(y, m, s, e, temperature)
        slope, entropy_slope = loss_terms(row, arguments, weight, logp, entropy, results, tokens, scalars, MODES)
        if grad is not None:
            a, b, at_target = _coefficients(
                y, m, s, log_s, entropy, slope, entropy_slope, temperature, softcap, SOFTCAP
            )
    else:
        untrained_terms(row, results)
    if grad is not None:
        grad_ptr, lead = _row(grad, row, grad_stride, W, SHIFTED)
        _write_gradient(
            grad_ptr, row_ptr, lead, vocab, target, at_target, m, a, b, k, softcap, SOFTCAP, ENTROPY, SHIFTED, N, W
        )


@triton.jit(do_not_specialize_on_alignment=["targets", "weights", "logps", "entropies"])
def _logprobs(
    logits,
    targets,
    weights,
    logps,
    entropies,
    stride,
    vocab,
    temperature,
    softcap,
    SOFTCAP: tl.constexpr,
    SHIFTED: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr, lead = _row(logits, row, stride, W, SHIFTED)
    weight = 1.0
    if weights is not None:
        weight = tl.load(weights + row)
    logp, entropy = 0.0, 0.0
    if weight != 0:
        y = _target(row_ptr, lead, vocab, tl.load(targets + row), softcap, SOFTCAP)
        m, s, e = _statistics(row_ptr, lead, vocab, LOG2_E / temperature, softcap, SOFTCAP, SHIFTED, N, W)
        logp, entropy, _ = _logp_entropy(y, m, s, e, temperature)
    tl.store(logps + row, logp)
    tl.store(entropies + row, entropy)


@triton.jit(do_not_specialize_on_alignment=["targets", "dlogps", "dentropies"])
def _dlogits(
    logits,
    grad,
    targets,
    dlogps,
    dentropies,
    stride,
    grad_stride,
    vocab,
    temperature,
    softcap,
    SOFTCAP: tl.constexpr,
    SHIFTED: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr, lead = _row(logits, row, stride, W, SHIFTED)
    grad_ptr, lead = _row(grad, row, grad_stride, W, SHIFTED)
    target = tl.load(targets + row)
    slope, entropy_slope = tl.load(dlogps + row), 0.0
    if dentropies is not None:
        entropy_slope = tl.load(dentropies + row)
    zero = tl.full((), 0.0, tl.float32)
    m, a, b, at_target = zero, zero, zero, zero
    k = LOG2_E / temperature
    if (slope != 0) | (entropy_slope != 0):
        y = _target(row_ptr, lead, vocab, target, softcap, SOFTCAP)
        m, s, e = _statistics(row_ptr, lead, vocab, k, softcap, SOFTCAP, SHIFTED, N, W)
        _, entropy, log_s = _logp_entropy(y, m, s, e, temperature)
        a, b, at_target = _coefficients(y, m, s, log_s, entropy, slope, entropy_slope, temperature, softcap, SOFTCAP)
    ENTROPY: tl.constexpr = dentropies is not None
    _write_gradient(
        grad_ptr, row_ptr, lead, vocab, target, at_target, m, a, b, k, softcap, SOFTCAP, ENTROPY, SHIFTED, N, W
    )


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["factor_ptr"])
def _scale(grad, factor_ptr, rows, width, stride, BLOCK: tl.constexpr):
    """Few programs with many blocks each, so that a factor of 1 costs next to nothing."""
    factor = tl.load(factor_ptr)
    if factor != 1:
        blocks = tl.cdiv(width, BLOCK)
        for i in range(tl.program_id(0).to(tl.int64), rows * blocks, tl.num_programs(0)):
            start = (i % blocks) * BLOCK
            at = grad + (i // blocks) * stride + start + tl.arange(0, BLOCK)
            if start + BLOCK <= width:
                tl.store(at, tl.load(at).to(tl.float32) * factor)
            else:
                inside = start + tl.arange(0, BLOCK) < width
                tl.store(at, tl.load(at, mask=inside).to(tl.float32) * factor, mask=inside)


# ---- launchers -------------------------------------------------------------------------------------------------------

VECTOR_BYTES = 16
THREAD_BYTES = 32  # of a block: two loads in flight for each thread
SCALE_BLOCK = 4096  # elements
BLOCK_BYTES = (2048, 8192, 32768)  # with 2, 8 and 32 warps; a row takes the first that holds it, else the last
ONCE_BYTES = BLOCK_BYTES[:2]  # for a single read: four programs on a multiprocessor overlap


def _blocks(*matrices_TV: Tensor, twice: bool) -> dict[str, int | bool]:
    """Block layout of the matrices' rows. Rows that no common shift aligns are read and written element by element.
    `twice`: a row is read again, from L2, so few programs may run at once."""
    item, vocab = matrices_TV[0].element_size(), matrices_TV[0].shape[1]
    vector = VECTOR_BYTES // item
    leads = {x_TV.stride(0) % vector for x_TV in matrices_TV}
    if len(leads) > 1 or any(x_TV.data_ptr() % VECTOR_BYTES for x_TV in matrices_TV):
        return {"SHIFTED": False, "N": 2048, "W": 1, "num_warps": 8, "maxnreg": 64}
    sizes = BLOCK_BYTES if twice else ONCE_BYTES
    size = next((each for each in sizes if vocab * item <= each), sizes[-1])
    return {
        "SHIFTED": leads != {0},
        "N": size // VECTOR_BYTES,
        "W": vector,
        "num_warps": size // THREAD_BYTES // 32,
        "maxnreg": 64,  # the most for 32 warps; without it ptxas takes 32 and spills
    }


class TritonRows(TritonTokens):
    """Row kernels (rows.py) for NVIDIA GPUs of compute capability 8.0 and up; under TRITON_INTERPRET=1 for CPUs too.

    Compiled ahead for sm_90 in the tests; has never run on a GPU.
    """

    name = "triton"

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            return f"triton takes bfloat16, float16 and float32, not {dtype}"
        if INTERPRETED:
            return None
        if device.type != "cuda":
            return f"triton takes tensors on an NVIDIA GPU, not on {device.type} (TRITON_INTERPRET=1 runs it, slowly)"
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= (8, 0) else f"triton needs compute capability 8.0, the device has {capability}"

    def logprobs(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float
    ) -> tuple[Tensor, Tensor]:
        tokens, vocab = logits.shape
        logp, entropy = (logits.new_empty(tokens, dtype=torch.float32) for _ in range(2))
        with torch.cuda.device_of(logits):
            _logprobs[(tokens,)](
                logits, targets, weight, logp, entropy, logits.stride(0), vocab, temperature, softcap,
                SOFTCAP=softcap != 0, **_blocks(logits, twice=False),
            )  # fmt: skip
        return logp, entropy

    def dlogits(
        self,
        logits: Tensor,
        targets: Tensor,
        dlogp: Tensor,
        dentropy: Tensor | None,
        temperature: float,
        softcap: float,
        grad: Tensor,
    ) -> None:
        tokens, vocab = logits.shape
        strides = logits.stride(0), grad.stride(0)
        with torch.cuda.device_of(logits):
            _dlogits[(tokens,)](
                logits, grad, targets, dlogp, dentropy, *strides, vocab, temperature, softcap,
                SOFTCAP=softcap != 0, **_blocks(logits, grad, twice=True),
            )  # fmt: skip

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        tokens: TokenArguments,
        modes: Modes,
        scalars: Scalars,
        results: Results,
        grad: Tensor | None,
    ) -> None:
        matrices = (logits,) if grad is None else (logits, grad)
        grad_stride = matrices[-1].stride(0)
        blocks = _blocks(*matrices, twice=grad is not None)
        entropy = scalars.entropy_coef != 0 or tokens.coefficients is not None
        with torch.cuda.device_of(logits):
            _loss[(logits.shape[0],)](
                logits, grad, targets, results, logits.stride(0), grad_stride, logits.shape[1], tokens, scalars,
                MODES=modes, SOFTCAP=scalars.softcap != 0, ENTROPY=entropy, **blocks,
            )  # fmt: skip

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        whole = grad.is_contiguous()
        rows, width, stride = (1, grad.numel(), 0) if whole else (*grad.shape, grad.stride(0))
        programs = min(1024, rows * triton.cdiv(width, SCALE_BLOCK))
        with torch.cuda.device_of(grad):
            _scale[(programs,)](grad, factor, rows, width, stride, BLOCK=SCALE_BLOCK, num_warps=8)
