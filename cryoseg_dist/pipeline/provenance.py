"""Where an artefact comes from, as every artefact says it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cryoseg_dist import __version__
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.runtime.events import without_secrets
from cryoseg_dist.store.manifest import read_manifest
from cryoseg_dist.store.project import Project, now


@dataclass(frozen=True)
class Provenance:
    """What made an artefact.

    Attributes
    ----------
    version : str
        Of this package.
    run : str
        Run id of the stage whose result it is; empty outside of a project.
    upstream : tuple of str
        Run ids that it was made from, the nearest first.
    settings, weights : str
        SHA-256 of all settings, and of the network's weights where it was used; hexadecimal.
    command : str
        Command line, without secrets.
    time : str
        When it was written, UTC.
    """

    version: str
    run: str
    upstream: tuple[str, ...]
    settings: str
    weights: str
    command: str
    time: str

    def lines(self) -> tuple[str, ...]:
        """The same as short lines of ASCII, for labels and comments."""
        if not self.run:
            return tuple(ascii_of(t) for t in (f"cryoseg_dist {self.version}, {self.time}", f"command {self.command}"))
        digests = f"settings sha256:{self.settings[:16]}" + (
            f" weights sha256:{self.weights[:16]}" * bool(self.weights)
        )
        lines = [f"cryoseg_dist {self.version}, {self.time}", f"run {self.run}", digests]
        if self.upstream:
            lines.append("from " + " ".join(self.upstream))
        return tuple(ascii_of(line) for line in (*lines, f"command {self.command}"))

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


def ascii_of(text: str) -> str:
    """One line of printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def ancestry(project: Project, run: str) -> tuple[list[str], str]:
    """Run ids that a run was made from, the nearest first, and the digest of the weights among them."""
    found: list[str] = []
    weights = ""
    level = [run]
    while level:
        above: list[str] = []
        for name in level:
            upstream = (read_manifest(project, name) or {}).get("upstream", {})
            weights = weights or str(upstream.get("weights", ""))
            for value in upstream.values():
                # A choice among the results of a run follows its id.
                parent = str(value).partition(":")[0]
                if parent not in (*found, *above, run) and "/" not in parent and read_manifest(project, parent):
                    above.append(parent)
        found += above
        level = above
    return found, weights


def by_command(command: Sequence[str]) -> Provenance:
    """What artefacts outside of a project say of themselves."""
    return Provenance(__version__, "", (), "", "", " ".join(without_secrets(word) for word in command), now())


def provenance_of(session: Session, run: str) -> Provenance:
    """What the artefacts of a run say of themselves."""
    name = run.partition(":")[0]
    upstream, weights = ancestry(session.project, name)
    text = json.dumps(session.settings.model_dump(mode="json"), sort_keys=True)
    return Provenance(
        __version__,
        name,
        tuple(upstream),
        hashlib.sha256(text.encode()).hexdigest(),
        weights,
        " ".join(session.command),
        now(),
    )
