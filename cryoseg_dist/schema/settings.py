"""Base of the settings of every stage."""

import ast
import inspect
import textwrap
from itertools import pairwise

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable, checked settings; unknown names are refused.

    A string below each field tells its meaning and unit; the commented configuration file is made from them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """What is told of each field. Read from the source when asked for: every process would wait for it otherwise."""
        out = {}
        for kind in (kind for kind in reversed(cls.__mro__) if issubclass(kind, Settings)):
            for definition in ast.parse(textwrap.dedent(inspect.getsource(kind))).body:
                for field, told in pairwise(definition.body if isinstance(definition, ast.ClassDef) else ()):
                    match field, told:
                        case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                            out[name] = " ".join(text.split())
        return out
