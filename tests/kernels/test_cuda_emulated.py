"""The logic of csrc/cuda.cu without a GPU: the same source, compiled for the CPU with cuda_emulated.h.

The emulated blocks are small, so that these vocabularies cover the cases of a GPU: several chunks, reused slots,
clusters of 1, 2, 4 and 8 blocks, unaligned rows. `exp2` is off by up to 2 ulp, as a GPU's may be.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import over_tokens
import pytest
import torch
from calls import assert_same_bits, call, with_credit
from criterion import check_logprobs, check_loss, logprobs_results, loss_results
from problems import logits_problem

import capo_kernels as ck
from capo_kernels.fused import native
from capo_kernels.fused.autograd import FusedImplementation
from capo_kernels.fused.custom_ops import KERNELS

ROOT = Path(__file__).parents[2]
BUILD = "g++ -O1 -std=c++17 -shared -fPIC -Wall -Werror -Wno-unknown-pragmas"
CLUSTERS = {1: 4_001, 2: 8_111, 4: 16_001, 8: 32_003}
"""Number of blocks per row: a vocabulary that needs it, in bfloat16; half of it in float32."""

EVERYTHING = ck.LossSpec(kl_coef=0.1, entropy_coef=0.1, temperature=0.8, is_mode="truncate")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


class EmulatedCuda(native.CudaRows):
    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        return None if 0 < vocab <= self._widest[dtype] else f"too wide: {vocab}"

    def _run_rows(self, function, device: torch.device, *arguments) -> None:
        function(*arguments, 0, None)

    _run_tokens = _run_rows


@pytest.fixture(scope="module", autouse=True)
def emulated_cuda(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("lib")
    include = [f"-I{ROOT / 'csrc'}", f"-I{Path(__file__).parent}"]
    source = str(Path(__file__).with_name("cuda_emulated.cpp"))
    subprocess.run([*BUILD.split(), source, *include, "-o", str(folder / "libcapo_cuda.so")], check=True)
    status = sys.modules["capo_kernels.registry"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARIES", folder)
        emulated = EmulatedCuda()
        patch.setitem(KERNELS, "cuda", emulated)
        patch.setitem(status.BUILT, "cuda", FusedImplementation(emulated))
        yield


@DTYPES
@pytest.mark.parametrize("blocks", CLUSTERS)
def test_loss_on_clusters_of_any_size(blocks: int, dtype: torch.dtype) -> None:
    vocab = CLUSTERS[blocks] // (2 if dtype == torch.float32 else 1)
    check_loss(logits_problem(EVERYTHING, dtype, lengths=(7,), vocab=vocab), "cuda")


SHAPES = ("64x2", "32x4", "64x3")
"""The emulated shapes."""


@DTYPES
@pytest.mark.parametrize("entropy", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_even_rows(shape: str, entropy: float, dtype: torch.dtype, monkeypatch) -> None:
    """Full chunks, a partial last chunk, and blocks of the cluster with fewer chunks."""
    monkeypatch.setenv("CAPO_CUDA_SHAPE", shape)
    for vocab in (16, 9_000):
        check_loss(logits_problem(replace(EVERYTHING, entropy_coef=entropy), dtype, lengths=(7,), vocab=vocab), "cuda")


def test_an_unknown_shape_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("CAPO_CUDA_SHAPE", "7x7")
    with pytest.raises(RuntimeError, match="CAPO_CUDA_SHAPE: names none"):
        check_loss(logits_problem(EVERYTHING, vocab=16), "cuda")


def _where(share: float) -> torch.Tensor:
    return torch.rand(6, HARD_VOCAB, generator=torch.Generator().manual_seed(3)) < share


HARD_VOCAB = 3_096
HARD = {
    "peaked": lambda x, y: x.scatter(1, y[:, None], 30.0),
    "peaked high up": lambda x, y: (x + 200).scatter(1, y[:, None], 230.0),
    "one is all": lambda x, y: (x - 300).scatter(1, y[:, None], 0.0),
    "flat": lambda x, y: x * 0 + 1.7,
    "near the bound of the fast path": lambda x, y: x * 30 + 300,
    "above it": lambda x, y: x + 900,
    "below it": lambda x, y: x - 900,
    "lowest in places": lambda x, y: x.masked_fill(_where(0.2), torch.finfo(torch.float16).min),
    "lowest almost everywhere": lambda x, y: x.masked_fill(_where(0.9985), torch.finfo(torch.float16).min),
    "lowest everywhere": lambda x, y: x * 0 + torch.finfo(torch.float16).min,
}


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", HARD)
def test_hard_rows(rows: str, dtype: torch.dtype, entropy: bool) -> None:
    """The fused exponent's error grows with the level of the logits; far from the bound everything is exact."""
    targets = torch.arange(6) * 500 + 17
    logits = HARD[rows](torch.randn(6, HARD_VOCAB, generator=torch.Generator().manual_seed(0)) * 2, targets).to(dtype)
    outer = {"logprobs": torch.linspace(-1, 2, 6), **({"entropy": torch.ones(6)} if entropy else {})}
    for temperature in (1.0, 0.01, 3e4):
        got = check_logprobs({"logits": logits}, targets, "cuda", temperature, outer)
        assert (got["logprobs"] <= 0).all()
        assert not entropy or (got["entropy"] >= 0).all()


@pytest.mark.parametrize("share", [0.1, 0.99])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("entropy", [False, True])
def test_minus_infinity_equals_a_very_low_logit(entropy: bool, dtype: torch.dtype, share: float) -> None:
    targets, where = torch.arange(6) * 500 + 17, _where(share)
    where[torch.arange(6), targets] = False
    x = torch.randn(6, HARD_VOCAB, generator=torch.Generator().manual_seed(0)).to(dtype)
    outer = {"logprobs": torch.linspace(-1, 2, 6), **({"entropy": torch.ones(6)} if entropy else {})}
    call = {"targets_T": targets, "impl": "cuda", "outer": outer}
    want = check_logprobs({"logits": x.masked_fill(where, -6e4)}, **call)
    got = logprobs_results({"logits": x.masked_fill(where, -math.inf)}, **call)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)
    assert got["gradient by logits"][where].abs().max() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [3_095, 3_096])
def test_nan_appears_in_the_results_of_its_row_only(vocab: int, dtype: torch.dtype, value: float) -> None:
    for at in (0, 1, 1_029, vocab - 1):
        logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0)).to(dtype)
        logits[1, at] = value
        got = logprobs_results({"logits": logits}, torch.arange(3), "cuda", outer={"logprobs": torch.ones(3)})
        assert got["logprobs"].isnan().tolist() == [False, True, False]
        assert got["gradient by logits"].isnan().any(1).tolist() == [False, True, False]


@DTYPES
@pytest.mark.parametrize("vocab", [1, 2, 7, 8, 13, 1_031])
def test_any_vocabulary(vocab: int, dtype: torch.dtype) -> None:
    check_loss(logits_problem(EVERYTHING, dtype, lengths=(9,), vocab=vocab), "cuda")


@DTYPES
def test_softcap(dtype: torch.dtype) -> None:
    spec = ck.LossSpec(softcap=2.5, temperature=1.6, entropy_coef=0.2, objective="reinforce")
    check_loss(logits_problem(spec, dtype, vocab=5_003, lengths=(5,)), "cuda")


@DTYPES
def test_log_probs_and_their_gradients(dtype: torch.dtype) -> None:
    logits = torch.randn(6, 9_001, generator=torch.Generator().manual_seed(0)) * 2
    check_logprobs({"logits": logits.to(dtype)}, torch.arange(6) * 1_800, "cuda", temperature=0.7)


@DTYPES
@pytest.mark.parametrize(
    ("vocab", "begin", "width", "inplace"),
    [(10_007, 5, 10_107, False), (10_008, 5, 10_107, True), (10_007, 8, 10_112, True)],
)
def test_any_place_in_memory_gives_the_same_bits(
    dtype: torch.dtype, vocab: int, begin: int, width: int, inplace: bool
) -> None:
    """Rows start at any of a vector's 16 bytes. The numbers around them are neither used nor overwritten."""
    problem = logits_problem(EVERYTHING, dtype, lengths=(7,), vocab=vocab)
    want = loss_results(problem, "cuda")["gradient by logits"]
    place = torch.full((7, width), 7.0, dtype=dtype)
    inside = place[:, begin : begin + vocab]
    leaf = problem.leaves["logits"].clone().requires_grad_()
    problem.call("cuda", {"logits": _Moved.apply(leaf, inside)}, inplace=inplace).loss.backward()
    assert torch.equal(leaf.grad, want)
    assert torch.equal(inside, want) == inplace
    assert (place[:, :begin] == 7).all()
    assert (place[:, begin + vocab :] == 7).all()


class _Moved(torch.autograd.Function):
    """Copies the values to another place in memory."""

    @staticmethod
    def forward(ctx, x, place):
        return place.copy_(x).detach()

    @staticmethod
    def backward(ctx, grad):
        return grad.clone(), None


@pytest.mark.parametrize("check", over_tokens.CHECKS, ids=lambda check: check.__name__)
def test_over_tokens(check) -> None:
    check("cuda")


def test_coefficients_on_the_device() -> None:
    changed = replace(EVERYTHING, clip_low=0.1, kl_coef=0.3, entropy_coef=-0.2, is_high=1.5)
    on_device = EVERYTHING.on("cpu")
    on_device.coefficients.copy_(changed.numbers)
    problem = logits_problem(changed)
    assert_same_bits(call(problem, "cuda", spec=on_device), call(problem, "cuda"))


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (lambda: logits_problem(EVERYTHING), 2),
        (lambda: with_credit(logits_problem(EVERYTHING), stats=True), 3),
        (lambda: with_credit(logits_problem(EVERYTHING), stats=False), 4),
        (lambda: logits_problem(replace(EVERYTHING, ratio="sequence", is_level="sequence")), 4),
    ],
)
def test_launches(make, want: int) -> None:
    library = ctypes.CDLL(str(native.LIBRARIES / "libcapo_cuda.so"))
    problem = make()
    check_loss(problem, "cuda")
    before = library.probe_launches()
    leaf = problem.leaves["logits"].clone().requires_grad_()
    result = problem.call("cuda", {"logits": leaf})
    assert library.probe_launches() - before == want
    torch.autograd.grad(result.loss, leaf)
    assert library.probe_launches() - before == want + 1


def test_no_element_is_left_out_of_a_maximum() -> None:
    """For any number of elements: a thread's share need not be a power of two."""
    library = ctypes.CDLL(str(native.LIBRARIES / "libcapo_cuda.so"))
    assert library.probe_largest() == 0
