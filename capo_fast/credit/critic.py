"""The critic (GenPRM) as a public interface: its template, prompt and answer."""

from capo_fast.credit.critique_parser import parse_critique
from capo_fast.credit.critique_prompt import load_template, render_critique_prompt

__all__ = ["load_template", "parse_critique", "render_critique_prompt"]
