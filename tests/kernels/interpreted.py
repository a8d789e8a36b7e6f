"""The Triton kernels under Triton's interpreter, on a CPU: those of the common tests that the row kernels decide.

The interpreter is chosen when triton is imported, so they run in a process of their own. It models no race, no grid
limit and no spill, and rounds towards 0 where it stores bfloat16.
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
        "test_no_log_prob_above_0_and_no_nan_for_any_level",
        "test_entropy_does_not_lose_its_digits_to_the_level_of_the_logits",
        "test_a_likely_word_keeps_the_digits_of_its_gradient",
        "test_nothing_beyond_the_last_word_is_read",
        "test_forbidden_words",
        "test_a_forbidden_target_is_impossible",
        "test_nan_in_a_trained_row_comes_out_and_stays_in_its_row",
        "test_no_exp_of_rows_of_weight_0",
        "test_a_difference_beyond_20_is_clamped_and_gives_no_gradient",
        "test_clips_of_no_width_let_the_current_policy_through",
        "test_the_factor_before_the_loss_reaches_the_gradient",
        "test_offsets_past_31_bits",
    ),
    "test_edges": (
        "test_strided_and_unaligned_rows",
        "test_unaligned_and_strided_arguments_beside",
        "test_no_tokens",
        "test_log_probs_of_no_tokens",
        "test_one_token",
        "test_rows_of_whole_vectors_in_several_blocks",
        "test_one_word_leaves_no_choice",
        "test_nothing_trained",
        "test_every_row_trained_and_negative_weights",
        "test_advantages_of_0_move_nothing",
        "test_credit_against_float64",
        "test_a_target_that_is_no_word",
    ),
    "test_compiled": ("test_the_loss_in_place_with_credit_in_one_graph",),
    "test_coefficients": ("test_they_stand_for_those_of_the_call[triton-ppo-logits_problem]",),
    "test_over_tokens": ("test_over_tokens",),
    "test_launches": ("test_launches_that_triton_counts",),
    "test_gradients": ("test_a_gradient_by_one_of_the_two_outputs",),
    "test_inplace_loss": (
        "test_same_loss_and_gradient_and_the_storage_holds_it",
        "test_a_view_of_strided_rows_is_overwritten_alone",
    ),
}


def check(*files: str) -> None:
    """Two test files call it for a half each: pytest-xdist hands out whole files. (Its groups do nothing under pytest
    9.2, pytest-xdist#1386.)"""
    names = [f"{file}.py::{name}" for file in files for name in TESTS[file]]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--durations=5", "-p", "no:cacheprovider", *names]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CAPO_TEST_IMPL": "triton", "CAPO_TEST_DEVICE": "cpu"}
    ended = subprocess.run(
        command, cwd=Path(__file__).parent, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout
