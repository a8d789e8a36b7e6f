"""Words that several patterns of the verifier are built from."""

TEXT_COMMANDS = (
    r"(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|boldsymbol|bm|operatorname\*?)"
)
"""LaTeX's fonts, without the backslash."""
CHOICE_WORD = "(?:option|choice|letter|answer)"
"""What a choice's letter may follow."""
