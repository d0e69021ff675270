"""Base of the settings of every stage."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable, checked settings; unknown names are refused.

    Every field carries a ``description`` with its unit, which the commented configuration file and the
    command line help are made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
