"""The Triton kernels under Triton's interpreter on a CPU: the common tests that depend on the row kernels.

The interpreter is chosen when triton is imported, so the tests run in a process of their own. It models no races, grid
limits or spills, and rounds towards 0 when it stores bfloat16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = {
    "test_against_float64": (
        "test_objective_ratio_kl_and_importance",
        "test_head_and_entropy",
        "test_narrow_logits",
        "test_any_vocabulary",
        "test_any_loss",
        "test_linear_loss[triton-sequence-torch.float32-7]",
        "test_logprobs",
    ),
    "test_numerics": (
        "test_no_ratio_noise_from_narrow_log_probs",
        "test_logits_are_widened_before_the_temperature",
        "test_log_probs_are_at_most_0_and_finite_at_any_level",
        "test_entropy_does_not_lose_its_digits_to_the_level_of_the_logits",
        "test_a_likely_word_keeps_the_digits_of_its_gradient",
        "test_nothing_after_the_last_word_is_read",
        "test_forbidden_words",
        "test_a_forbidden_target_is_impossible",
        "test_nan_in_a_trained_row_appears_in_its_row_only",
        "test_no_exp_of_rows_of_weight_0",
        "test_a_difference_beyond_20_is_clamped_and_gives_no_gradient",
        "test_a_clip_range_of_width_0_keeps_the_gradient_of_the_current_policy",
        "test_a_factor_on_the_loss_scales_the_gradient",
        "test_offsets_past_31_bits",
    ),
    "test_edges": (
        "test_strided_and_unaligned_rows",
        "test_unaligned_and_strided_other_arguments",
        "test_no_tokens",
        "test_log_probs_of_no_tokens",
        "test_one_token",
        "test_rows_of_whole_vectors_in_several_blocks",
        "test_a_vocabulary_of_one_word_has_log_prob_0",
        "test_nothing_trained",
        "test_every_row_trained_and_negative_weights",
        "test_advantages_of_0_give_no_gradient",
        "test_credit_against_float64",
        "test_a_target_outside_the_vocabulary",
    ),
    "test_compiled": ("test_the_loss_in_place_with_credit_in_one_graph",),
    "test_coefficients": ("test_coefficients_on_the_device_replace_those_of_the_call[triton-ppo-logits_problem]",),
    "test_over_tokens": ("test_over_tokens",),
    "test_launches": ("test_launches_that_triton_counts",),
    "test_gradients": ("test_a_gradient_by_one_of_the_two_outputs",),
    "test_inplace_loss": (
        "test_same_loss_and_gradient_which_is_in_the_storage_of_the_logits",
        "test_only_the_view_of_strided_rows_is_overwritten",
    ),
}


def check(*files: str) -> None:
    """Run the tests of these files. Two test files call it for one half each, because pytest-xdist distributes whole
    files. (Its groups have no effect with pytest 9.2, pytest-xdist#1386.)"""
    names = [f"{file}.py::{name}" for file in files for name in TESTS[file]]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--durations=5", "-p", "no:cacheprovider", *names]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CAPO_TEST_IMPL": "triton", "CAPO_TEST_DEVICE": "cpu"}
    ended = subprocess.run(
        command, cwd=Path(__file__).parent, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout
