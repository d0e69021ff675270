"""KubeRay's schemas, strict: a field that they do not know is a fault."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

FILES = {"RayJob": "rayjob_v1.7.0.yaml", "RayCluster": "raycluster_v1.7.0.yaml"}


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused wherever fields are listed."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: v for k, v in schema.items() if k not in ("properties", "format", "description")}
    out = {
        k: strict(v) if k in ("items", "anyOf", "allOf", "oneOf", "additionalProperties") else v for k, v in out.items()
    }
    if "properties" in schema:
        out["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    return out


@cache
def validator(folder: Path, kind: str) -> jsonschema.Draft202012Validator:
    """A validator of one kind from the resource definitions in a folder."""
    definition = yaml.load((folder / FILES[kind]).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def faults(folder: Path, ray: dict[str, Any]) -> list[str]:
    """What the schema refuses in an object."""
    found = validator(folder, ray["kind"]).iter_errors(ray)
    return [f"{ray['kind']} {'.'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in found]
