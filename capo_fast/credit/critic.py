"""The critic (GenPRM): the prompt it is given, the answer it gives, and how the policy's text enters the prompt."""

from capo_fast.credit.critique_parser import CRITIQUE_REGEX, parse_critique
from capo_fast.credit.critique_prompt import load_template, render_critique_prompt
from capo_fast.credit.neutralise import COMMON_SPECIAL_TOKENS, neutralise

__all__ = [
    "COMMON_SPECIAL_TOKENS",
    "CRITIQUE_REGEX",
    "load_template",
    "neutralise",
    "parse_critique",
    "render_critique_prompt",
]
