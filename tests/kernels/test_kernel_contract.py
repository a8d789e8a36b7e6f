"""The public interface: names, signatures, implementations and dependencies."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from implementations import implementations, refusal

import capo_kernels as ck
from capo_kernels import registry
from capo_kernels.metrics import RAW
from capo_kernels.rows import CHOICES, NORMS, TERMS

KERNELS = Path(__file__).parents[2] / "kernels"

SIGNATURES = {
    "credit_stats": "credit mask",
    "token_advantages": "credit mask",
    "token_weights": "cu_seqlens mask mode denominator=None",
    "token_logprobs": "logits targets * temperature=1.0 softcap=None entropy=False impl='auto'",
    "linear_token_logprobs": "hidden weight targets * bias=None temperature=1.0 softcap=None entropy=False "
    "chunk_tokens=None logits_dtype=None impl='auto'",
    "policy_loss": "logits targets * weights advantages=None credit=None old_logprobs=None ref_logprobs=None "
    "rollout_logprobs=None cu_seqlens=None spec=LossSpec inplace=False impl='auto'",
    "linear_policy_loss": "hidden weight targets * weights bias=None chunk_tokens=None logits_dtype=None rows=None "
    "advantages=None credit=None old_logprobs=None ref_logprobs=None rollout_logprobs=None cu_seqlens=None "
    "spec=LossSpec impl='auto'",
    "status": "",
    "release_memory": "",
    "Credit": "step_starts step_wrong outcome group cu_seqlens outcome_weight=2.0 process_weight=1.0 "
    "norm='group-token' std_floor=0.0 stats=None",
    "LossSpec": "objective='ppo' ratio='token' clip_low=0.2 clip_high=0.2 dual_clip=None kl_coef=0.0 kl_estimator='k3' "
    "kl_ratio=False entropy_coef=0.0 temperature=1.0 softcap=None is_mode=None is_level='token' is_low=0.0 is_high=2.0",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    words, keyword_only = [], False
    for p in inspect.signature(getattr(ck, name)).parameters.values():
        if p.kind == p.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        default = "LossSpec" if p.default == ck.LossSpec() else repr(p.default)
        words.append(p.name if p.default is p.empty else f"{p.name}={default}")
    assert " ".join(words) == SIGNATURES[name]


def test_every_public_name_has_a_docstring() -> None:
    assert set(ck.__all__) >= {*SIGNATURES, "PolicyLoss"}
    for name in ck.__all__:
        assert len((getattr(ck, name).__doc__ or "").split()) >= 5, name


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        ck.LossSpec().clip_low = 0.3


def run(impl: str, dtype: torch.dtype = torch.float32) -> ck.PolicyLoss:
    ones = torch.ones(2)
    return ck.policy_loss(
        torch.zeros(2, 3, dtype=dtype), torch.zeros(2).long(), weights=ones, advantages=ones, impl=impl
    )


def test_status_names_every_implementation() -> None:
    assert set(ck.status()) == {"reference", "triton", "cuda", "cpu"}
    assert ck.status()["reference"] == "available"
    assert all(reason for reason in ck.status().values())


@pytest.mark.parametrize("impl", ["reference", "triton", "cuda", "cpu"])
@pytest.mark.parametrize("op", ["policy_loss", "linear_policy_loss", "token_logprobs", "linear_token_logprobs"])
def test_a_named_implementation_runs_or_raises_with_its_reason(op: str, impl: str) -> None:
    device = "cuda" if impl in ("triton", "cuda") and torch.cuda.is_available() else "cpu"
    zeros, ones = torch.zeros(3, 3, device=device), torch.ones(2, device=device)
    extra = [zeros] if op.startswith("linear") else []
    others = {"weights": ones, "advantages": ones} if op.endswith("loss") else {}

    def call():
        return getattr(ck, op)(zeros[:2], *extra, zeros[0, :2].long(), impl=impl, **others)

    if ck.status()[impl] == "available":
        call()
    else:
        with pytest.raises(RuntimeError, match=f"impl='{impl}' cannot run: {re.escape(ck.status()[impl])}"):
            call()


@pytest.mark.skipif("CAPO_TEST_IMPL" in os.environ, reason="CAPO_TEST_IMPL chooses the implementations")
@pytest.mark.parametrize("impl", ck.status())
def test_the_common_tests_check_every_implementation_that_runs_here(impl: str) -> None:
    if reason := refusal(impl):
        pytest.skip(reason)
    assert impl in implementations()


def test_auto_reports_its_choice() -> None:
    assert ck.status()[run("auto").impl] == "available"
    assert run("auto", torch.float64).impl == "reference"
    assert run("reference").impl == "reference"


@pytest.fixture
def no_cpu(monkeypatch) -> None:
    """As on a machine without a C++ compiler."""
    monkeypatch.delenv("CAPO_CPU_ISA", raising=False)
    monkeypatch.delitem(registry.BUILT, "cpu", raising=False)
    monkeypatch.setitem(registry.MISSING, "cpu", "not built: no compiler")
    registry._warn_of_fallback.cache_clear()


def test_auto_warns_once_when_it_falls_back_to_the_reference(no_cpu) -> None:
    with warnings.catch_warnings(action="error"):
        assert run("auto", torch.float64).impl == "reference"  # as with `cpu`
    with pytest.warns(UserWarning, match=r"'auto' runs 'reference'.*\(cpu: not built: no compiler\)") as found:
        assert [run("auto").impl for _ in range(2)] == ["reference"] * 2
    assert [Path(each.filename).name for each in found] == [Path(__file__).name]


def test_auto_refuses_an_instruction_set_that_cannot_run(no_cpu, monkeypatch) -> None:
    monkeypatch.setenv("CAPO_CPU_ISA", "mmx")
    with pytest.raises(RuntimeError, match=r"^impl='auto' with CAPO_CPU_ISA='mmx' cannot run: cpu: "):
        run("auto")


def test_the_reference_under_torch_compile(monkeypatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    compiled = torch.compile(lambda: run("auto", torch.float64).loss, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"impl='reference' .* can't be compiled; torch\.compile takes cpu, "):
        compiled()


def test_the_folder_contains_only_the_package() -> None:
    """With a file in it, `kernels` would shadow the package of that name that transformers imports."""
    assert not list(KERNELS.glob("*.py"))
    assert [p.name for p in KERNELS.iterdir() if p.is_dir() and list(p.glob("*.py"))] == ["capo_kernels"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_the_package_needs_only_torch() -> None:
    files = list((KERNELS / "capo_kernels").rglob("*.py"))
    assert len(files) > 5
    assert set().union(*map(imports, files)) - sys.stdlib_module_names == {"torch", "triton"}
    assert all(path.name.startswith("triton_") for path in files if "triton" in imports(path))


def test_the_readme_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (KERNELS / "README.md").read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(block, names)


def test_the_numbers_of_choices_and_columns_are_the_same_in_c() -> None:
    text = re.sub(r"/\*.*?\*/", "", (KERNELS.parent / "csrc" / "capo.h").read_text(), flags=re.DOTALL)
    enums = [re.findall(r"CAPO_(\w+)(?: = (\d+))?", body) for body in re.findall(r"enum \{(.*?)\}", text, re.DOTALL)]
    for field, prefix in {"objective": "", "kl_estimator": "", "is_mode": "IS_", "is_level": "LEVEL_"}.items():
        places = enumerate(CHOICES[field])
        assert [(f"{prefix}{choice}".upper(), str(place)) for place, choice in places] in enums, field
    listed = [[name for name, _ in enum] for enum in enums]
    assert [*(re.sub("^IS_WEIGHT", "IS", name.upper()) for name in TERMS), "TERMS"] in listed
    assert [*(f"RAW_{name}".upper() for name in RAW), "RAW"] in listed
    assert [name.replace("-", "_").upper() for name in NORMS] in listed


def test_an_unused_choice_compiles_no_separate_kernel() -> None:
    assert ck.LossSpec(is_level="sequence").modes == ck.LossSpec().modes
    masked = ck.LossSpec(is_mode="mask")
    assert replace(masked, is_level="sequence").modes != masked.modes
