"""The logic of csrc/cuda.cu without a GPU: the same source, compiled for the CPU over cuda_emulated.h.

The emulated blocks are small, so that these vocabularies take all that a GPU's do: several chunks, slots that are used
again, clusters of 1, 2, 4 and 8 blocks, rows that no vector begins at. `exp2` is the CPU's, not a GPU's approximation.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import over_tokens
import pytest
import torch
from calls import call, same_in_every_bit, with_credit
from criterion import check_logprobs, check_loss, loss_results
from problems import logits_problem

import capo_kernels as ck
from capo_kernels.fused import native
from capo_kernels.fused.autograd import FusedImplementation
from capo_kernels.fused.custom_ops import KERNELS

ROOT = Path(__file__).parents[2]
BUILD = "g++ -O1 -std=c++17 -shared -fPIC -Wall -Werror -Wno-unknown-pragmas"
CLUSTERS = {1: 4_001, 2: 8_111, 4: 16_001, 8: 32_003}
"""A width for each number of blocks to a row, of bfloat16; of half as many float32."""

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
@pytest.mark.parametrize("inplace", [False, True])
def test_anywhere_in_memory_the_same_bits(dtype: torch.dtype, inplace: bool) -> None:
    """Rows that begin at any of the 16 bytes of a vector, beside NaN that is neither used nor overwritten."""
    problem = logits_problem(EVERYTHING, dtype, lengths=(7,), vocab=10_007)
    want = loss_results(problem, "cuda")["gradient by logits"]
    place = torch.full((7, 10_107), torch.nan, dtype=dtype)
    inside = place[:, 5:-95]
    leaf = problem.leaves["logits"].clone().requires_grad_()
    problem.call("cuda", {"logits": _Moved.apply(leaf, inside)}, inplace=inplace).loss.backward()
    assert torch.equal(leaf.grad, want)
    assert torch.equal(inside, want) == inplace
    assert place[:, :5].isnan().all()
    assert place[:, -95:].isnan().all()


class _Moved(torch.autograd.Function):
    """The same values at another place."""

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
    live = EVERYTHING.on("cpu")
    live.coefficients.copy_(changed.numbers)
    problem = logits_problem(changed)
    same_in_every_bit(call(problem, "cuda", spec=live), call(problem, "cuda"))


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
    """Of any number of elements, of which a thread may come to hold other than 2^n."""
    library = ctypes.CDLL(str(native.LIBRARIES / "libcapo_cuda.so"))
    assert library.probe_largest() == 0


def test_what_nvcc_built_spills_nothing() -> None:
    """A stack is memory traffic that the bounds don't count."""
    library = ROOT / "kernels/capo_kernels/lib/libcapo_cuda.so"
    if not library.exists():
        pytest.skip(library.with_suffix(".missing").read_text())
    cuobjdump = pytest.importorskip("triton").knobs.nvidia.cuobjdump.path
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", library], capture_output=True, text=True, check=True)
    stacks = re.findall(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage.stdout)
    assert len(stacks) > 20
    assert set(stacks) == {("0", "0")}


def test_two_blocks_fit_on_a_multiprocessor_however_their_warps_fall() -> None:
    """Each of its four schedulers holds the warps of a quarter of both blocks, of 16,384 registers."""
    library = ROOT / "kernels/capo_kernels/lib/libcapo_cuda.so"
    if not library.exists():
        pytest.skip(library.with_suffix(".missing").read_text())
    cuobjdump = pytest.importorskip("triton").knobs.nvidia.cuobjdump.path
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", library], capture_output=True, text=True, check=True)
    registers = [int(count) for count in re.findall(r"stream_rows\S*\n\s*REG:(\d+)", usage.stdout)]
    [consumers] = re.findall(r"CONSUMERS = (\d+)", (ROOT / "csrc/cuda_device.cuh").read_text())
    warps = int(consumers) // 32 + 1
    assert warps % 4 == 0
    assert len(registers) == 18
    assert 2 * warps // 4 * 32 * (-(-max(registers) // 8) * 8) <= 16_384
