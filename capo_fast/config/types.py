"""Types of settings: bounds that pydantic checks and `--help` shows, and the mark of what a resume may change."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field

STRICT = ConfigDict(allow_inf_nan=False, extra="forbid", use_attribute_docstrings=True)
"""How every section reads its values. Its fields' docstrings are their descriptions."""

T = TypeVar("T")
MayChange = Annotated[T, Field(json_schema_extra={"may_change": True})]
"""A setting, or a section, that may differ between the starts of one run. The engine's sizes, `train.micro_tokens` and
`policy.loss_kernel` change rounding: a run resumed with others goes on, but not bit by bit."""

Share = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]

# The same as capo_kernels.credit.Norm, which would import torch: `--help` must start in a fraction of a second.
Norm = Literal["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]
