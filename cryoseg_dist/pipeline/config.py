"""The settings of a whole run: a TOML file, the environment and flags, checked all at once."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.kernels.symmetry import operators
from cryoseg_dist.runtime.events import without_secrets
from cryoseg_dist.runtime.executor import STORE_PATIENCE
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.stages.abinitio import AbinitioSettings
from cryoseg_dist.stages.classify import ClassifySettings
from cryoseg_dist.stages.common_lines import CommonLinesSettings
from cryoseg_dist.stages.ctf import CtfSettings
from cryoseg_dist.stages.extract import ExtractSettings
from cryoseg_dist.stages.ingest import IngestSettings
from cryoseg_dist.stages.pick import PickSettings
from cryoseg_dist.stages.postprocess import PostprocessSettings
from cryoseg_dist.stages.reconstruct import ReconstructSettings
from cryoseg_dist.stages.refine import RefineSettings
from cryoseg_dist.stages.segment import SegmentSettings
from cryoseg_dist.store.location import check_url

ENVIRONMENT_PREFIX = "CRYOSEG_"


class DataSettings(Settings):
    """Where the micrographs are and how they were taken."""

    micrographs: str = ""
    """Glob pattern of micrographs (MRC, TIFF, gzip) or a STAR file that lists them."""
    pixel_size: float = Field(gt=0.05, lt=50)
    """Pixel size of the micrographs in A."""
    voltage: float = Field(ge=20, le=1500)
    """Acceleration voltage in kV."""
    spherical_aberration: float = Field(ge=0, le=20)
    """Spherical aberration in mm."""
    amplitude_contrast: float = Field(default=0.1, ge=0, lt=1)
    """Amplitude contrast as a fraction."""
    protein_dark: bool = True
    """True where the protein is darker than the ice, as detectors record it."""
    image_roots: tuple[str, ...] = ()
    """Folders that images may lie in, links followed; anywhere when empty."""

    @property
    def optics(self) -> Optics:
        """The same as a plain value."""
        return Optics(self.pixel_size, self.voltage, self.spherical_aberration, self.amplitude_contrast)


class ParticleSettings(Settings):
    """What the molecule is."""

    diameter: float | None = Field(default=None, gt=10, lt=5000)
    """Longest extent of the particle in A."""
    symmetry: str = "C1"
    """Point group: C<n>, D<n>, T, O or I."""

    @field_validator("symmetry")
    @classmethod
    def _known_group(cls, value: str) -> str:
        try:
            operators(value)
        except SettingsError as fault:
            raise ValueError(str(fault)) from None
        return value.upper()


class EngineSettings(Settings):
    """Where the work runs."""

    engine: Literal["ray", "inline"] = "ray"
    """``ray`` for a pool of actors (embedded, or on a cluster), ``inline`` for this process alone."""
    ray_address: str | None = None
    """Address of a running Ray cluster; an embedded one is started when not given."""
    workers: int | None = Field(default=None, ge=1)
    """Number of actors; from cores and memory when not given."""
    wait_for_workers: float = Field(default=0.0, ge=0)
    """Seconds to wait until ``workers`` fit the cluster; an autoscaling cluster is asked for room."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Cores an actor takes."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs (or a share of one) an actor takes."""
    dask_address: str | None = None
    """Address of a running Dask scheduler that sums Fourier space, or its scheduler file (.json)."""
    dask_workers: int | None = Field(default=None, ge=0)
    """Dask workers started inside Ray actors for that, without ``dask_address``; 0 for threads of the driver. When not given:
    one for every two cores of a Ray cluster (``ray_address``), threads otherwise."""
    store: str | None = None
    """URL of the arrays, ``s3://BUCKET/PREFIX``, a prefix for each project; in the project folder when not given. Ledgers and
    results stay there. Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."""
    unit_deadline: float = Field(default=3600.0, gt=0)
    """Seconds after which a unit of work counts as hung."""
    store_patience: float = Field(default=STORE_PATIENCE, ge=0)
    """Seconds that the storage may refuse reads and writes, tried again and again, before the run stops."""
    check_space: bool = True
    """Refuse to start a stage whose results, uncompressed, do not fit the disk."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the Prometheus metrics; not served when not given."""
    metrics_address: str = "127.0.0.1"
    """Address the metrics are served on."""

    @field_validator("store")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        try:
            return None if value is None else check_url(value)
        except BadInputError as fault:
            raise ValueError(f"expected {fault.expected}, got {fault.got}") from None


class StartSettings(Settings):
    """How the first map comes about."""

    method: Literal["auto", "stochastic", "common_lines", "reference"] = "auto"
    """``auto``: the reference where one is given; else, without symmetry, common lines where they can be trusted; else
    stochastic expectation-maximisation from the particles. ``common_lines``: from class averages, for particles without
    symmetry."""
    reference: str | None = None
    """A map (MRC) to start from."""


class RunSettings(Settings):
    """Everything that determines a run."""

    data: DataSettings
    particle: ParticleSettings = ParticleSettings()
    engine: EngineSettings = EngineSettings()
    ingest: IngestSettings = IngestSettings()
    ctf: CtfSettings = CtfSettings()
    segment: SegmentSettings = SegmentSettings()
    pick: PickSettings = PickSettings()
    extract: ExtractSettings = ExtractSettings()
    classify: ClassifySettings = ClassifySettings()
    start: StartSettings = StartSettings()
    abinitio: AbinitioSettings = AbinitioSettings()
    common_lines: CommonLinesSettings = CommonLinesSettings()
    refine: RefineSettings = RefineSettings()
    reconstruct: ReconstructSettings = ReconstructSettings()
    postprocess: PostprocessSettings = PostprocessSettings()


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a later layer wins."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                held = out.get(key)
                out[key] = merge(held if isinstance(held, Mapping) else {}, value)
            else:
                out[key] = value
    return out


def parse_value(text: str) -> Any:
    """Read a value as TOML (number, bool, list), or as the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text


def from_assignments(assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn ``("ctf.tile_size", 512)`` pairs into nested mappings."""
    out: dict[str, Any] = {}
    for dotted, value in assignments:
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def from_environment(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings from variables such as ``CRYOSEG_DATA__PIXEL_SIZE``."""
    found = os.environ if environment is None else environment
    return from_assignments(
        (name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), parse_value(value))
        for name, value in sorted(found.items())
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name
    )


def from_toml(path: Path) -> dict[str, Any]:
    """Settings from a TOML file.

    Raises
    ------
    BadInputError
        The file is missing or is not TOML.
    """
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise BadInputError(str(path), "a TOML file", "no such file", "`cryoseg init` writes one.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as fault:
        raise BadInputError(str(path), "a TOML file", str(fault)) from None
    except (RecursionError, ValueError) as fault:
        # Thousands of nested brackets, or numbers of thousands of digits.
        raise BadInputError(str(path), "a TOML file of settings", f"{type(fault).__name__}") from None


def build_settings(*layers: Mapping[str, Any]) -> RunSettings:
    """Merge layers and check them.

    Raises
    ------
    SettingsError
        Lists every unknown name and impossible value at once.
    """
    try:
        return RunSettings.model_validate(merge(*layers))
    except ValidationError as faults:
        raise SettingsError(describe_fault(f) for f in faults.errors()) from None


def image_roots(*layers: Mapping[str, Any]) -> list[Path]:
    """``data.image_roots`` of layers of settings that are not checked yet: particles are read before they can be."""
    data = merge(*layers).get("data", {})
    roots = data.get("image_roots", []) if isinstance(data, Mapping) else []
    if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise SettingsError([f"data.image_roots: expected a list of folders, got {roots!r}."])
    return [Path(root) for root in roots]


def describe_fault(fault: Mapping[str, Any]) -> str:
    """One line for one fault: where, expected, got."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return (
            f"{where}: expected a value, got none. Set it in the file or as --{where.split('.')[-1].replace('_', '-')}."
        )
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown setting. `cryoseg init` lists all of them."
    return f"{where}: {fault['msg']}, got {without_secrets(repr(fault['input']))}."


def toml_literal(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_literal(v) for v in value) + "]"
    return repr(value)


def section_model(field: FieldInfo) -> type[Settings]:
    """The settings class of a section."""
    annotation = field.annotation
    if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
        raise TypeError(f"{field} is no section of settings")
    return annotation


def commented_toml(values: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Every setting with its meaning and default, as a TOML file; ``values`` are filled in.

    Settings without a value and without a default that must be given stand as comments.
    """
    given = values or {}
    lines = ["# Settings of a cryoseg run. Lines that begin with # hold the defaults."]
    for section, field in RunSettings.model_fields.items():
        model = section_model(field)
        doc = (model.__doc__ or "").strip().splitlines()[0]
        meanings = model.meanings()
        lines += ["", f"# {doc}", f"[{section}]"]
        for name, info in model.model_fields.items():
            lines.append(f"# {meanings[name].replace('``', '')}{choices(info)}")
            if name in given.get(section, {}):
                lines.append(f"{name} = {toml_literal(given[section][name])}")
            elif info.is_required():
                lines.append(f"# {name} =")
            else:
                default = info.get_default(call_default_factory=True)
                lines.append(f"# {name} =" if default is None else f"# {name} = {toml_literal(default)}")
    return "\n".join(lines) + "\n"


def choices(info: FieldInfo) -> str:
    """The allowed words of a choice, in brackets."""
    words = [w for w in get_args(info.annotation) if isinstance(w, str)]
    return f" [{' | '.join(words)}]" if words else ""
