"""Types of settings: bounds that pydantic checks and `--help` prints, and the mark of settings that may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Gt, Le
from pydantic import AfterValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt
from pydantic_core import PydanticCustomError

from capo_fast.config.paths import expand_home

STRICT = ConfigDict(allow_inf_nan=False, extra="forbid", use_attribute_docstrings=True)
"""Pydantic configuration of every section. Fields' docstrings are their descriptions."""

T = TypeVar("T")
MayChange = Annotated[T, Field(json_schema_extra={"may_change": True})]
"""A setting, or a section, that may differ between the starts of one run. The engine's sizes, `train.micro_tokens` and
`policy.loss_kernel` change rounding: a run resumed with other values continues, but not bit for bit."""

Share = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class WhereUsed:
    """Bounds that apply only to a run that uses the setting: `config/rules.py` checks them, pydantic does not.

    The annotated type has the bounds that apply to any run.
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

# A copy of capo_kernels.credit.Norm, whose import would load torch: `--help` must start in a fraction of a second.
Norm = Literal["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]
