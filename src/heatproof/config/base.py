"""What all sections of a configuration are built from: their base, plugins, and checked types."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def distinct(values: Sequence[Any]) -> Sequence[Any]:
    """Refuses values that occur twice."""
    # Numbers name files and lines of results as they are written, and so do names where a file system ignores case.
    keys = [f"{value:g}" if isinstance(value, float) else value for value in values]
    for position, (key, value) in enumerate(zip(keys, values, strict=True)):
        if value in values[:position]:
            raise ValueError(f"{key if isinstance(value, float) else repr(value)} occurs twice")
        if key in keys[:position]:
            raise ValueError(f"{value!r} is written {key}, as one before it; numbers must differ in six digits")
    return values


def check_file_names(names: Sequence[str], of: str) -> None:
    """Raises ValueError where two names, or a name and a file of the stages, are one path, perhaps but for case."""
    for position, name in enumerate(names):
        for other in names[:position]:
            if name.lower() == other.lower():
                how = "occurs twice" if name == other else f"differs from {other!r} in case only"
                raise ValueError(f"{of}[{position}].name: {name!r} {how}; names must differ")
        if name.lower() in RESERVED:
            raise ValueError(f"{of}[{position}].name: {name!r} is the name of a file of results; take another")


def ascending(values: tuple[float, float]) -> tuple[float, float]:
    """Refuses a largest value before the least."""
    if values[0] > values[1]:
        raise ValueError("the least must come first")
    return values


def _percentile(value: float) -> float:
    if not 0 <= value <= 100:
        raise ValueError("must lie between 0 and 100")
    return value


def as_list(value: Any) -> Any:
    """A list of one where a text stands alone."""
    return [value] if isinstance(value, str) else value


def _empty_when_null(value: Any) -> Any:
    return {} if value is None else value


FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Percentile = Annotated[float, AfterValidator(_percentile)]
Options = Annotated[dict[str, Any], BeforeValidator(_empty_when_null)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
RESERVED = ("results", "timing.csv")
"""Names of files that stages leave beside those of the methods."""


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Plugin(BaseModel):
    """A class named by its dotted path; all further keys are its keyword arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="dotted path, such as torch.optim.Adam")

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})
