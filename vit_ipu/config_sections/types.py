"""Types of values in a config, and the section that all sections are."""

from __future__ import annotations

from typing import Optional, Tuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt
from typing_extensions import Annotated, Literal


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL, which no path can have: remove it")
    return text


Positive = Annotated[int, Field(gt=0, le=1 << 30)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_without_nul)]
Probability = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Ints = Annotated[Tuple[StrictInt, ...], Field(strict=False)]
Pair = Annotated[Tuple[StrictFloat, StrictFloat], Field(strict=False)]
Operations = Annotated[
    Tuple[Annotated[StrictInt, Field(ge=1, le=14)], Annotated[StrictInt, Field(ge=0, le=30)]], Field(strict=False)
]
Proportions = Annotated[
    Tuple[StrictFloat, ...],
    Field(strict=False),
    BeforeValidator(lambda value: [value] if isinstance(value, float) else value),
]
Triple = Annotated[Tuple[StrictFloat, StrictFloat, StrictFloat], Field(strict=False)]
FloatType = Literal["float16", "float32"]


class Section(BaseModel):
    """Frozen section of a config; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def check_layers(key: str, layers: Optional[Tuple[int, ...]]) -> None:
    for count in layers or ():
        if count < 0:
            raise ValueError(f"{key}: {count} is negative: give 0 or more blocks for each IPU")
    if layers is not None and 0 in layers[1:-1]:
        raise ValueError(
            f"{key} {list(layers)}: IPU {layers[1:-1].index(0) + 1} would have nothing to do: only the first, with the "
            "embedding, and the last, with the head, may have 0 blocks"
        )
