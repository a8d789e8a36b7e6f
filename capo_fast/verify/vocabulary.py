"""Words shared by several patterns of the verifier."""

TEXT_COMMANDS = (
    r"(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|boldsymbol|bm|operatorname\*?)"
)
"""LaTeX's font commands, without the backslash."""
CHOICE_WORD = "(?:option|choice|letter|answer)"
"""Words that may precede a choice's letter."""
