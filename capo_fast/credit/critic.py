"""The critic (GenPRM) for use from outside: its template, the prompt it is given, and the answer it gives."""

from capo_fast.credit.critique_parser import parse_critique
from capo_fast.credit.critique_prompt import load_template, render_critique_prompt

__all__ = ["load_template", "parse_critique", "render_critique_prompt"]
