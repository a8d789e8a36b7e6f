"""Types of settings: bounds that pydantic checks and `--help` shows, and the mark of what a resume may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Gt, Le
from pydantic import AfterValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt
from pydantic_core import PydanticCustomError

from capo_fast.config.paths import expand_home

STRICT = ConfigDict(allow_inf_nan=False, extra="forbid", use_attribute_docstrings=True)
"""How every section reads its values. Its fields' docstrings are their descriptions."""

T = TypeVar("T")
MayChange = Annotated[T, Field(json_schema_extra={"may_change": True})]
"""A setting, or a section, that may differ between the starts of one run. The engine's sizes, `train.micro_tokens` and
`policy.loss_kernel` change rounding: a run resumed with others goes on, but not bit by bit."""

Share = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class WhereUsed:
    """Bounds that refuse a value only in a run that uses the setting: `config/rules.py` checks them, pydantic never.

    The type beside it has those that hold in any run.
    """

    bounds: tuple[Any, ...]


POSITIVE = WhereUsed((Gt(0),))
CountWhereUsed = Annotated[NonNegativeInt, POSITIVE]
NumberWhereUsed = Annotated[NonNegativeFloat, POSITIVE]
ShareWhereUsed = Annotated[NonNegativeFloat, WhereUsed((Gt(0), Le(1)))]


def _expanded(text: str) -> str:
    try:
        return expand_home(text)
    except ValueError as error:
        raise PydanticCustomError("path", "{cause}", {"cause": str(error)}) from None


FilePath = Annotated[str, AfterValidator(_expanded), Field(json_schema_extra={"format": "path"})]
"""A path or hub id, `pkg://` included, with `~` expanded."""

# The same as capo_kernels.credit.Norm, which would import torch: `--help` must start in a fraction of a second.
Norm = Literal["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]
