"""The image file as instructions, and rules for it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

REGISTRIES = re.compile(
    r"https?://|pypi|pythonhosted|pytorch\.org|anaconda|npmjs|debian\.org|docker\.io|quay\.io|ghcr\.io", re.I
)
SECRETS = re.compile(r"(password|passwd|secret|token|api_?key|access_?key)", re.I)


@dataclass
class Stage:
    """A build stage."""

    base: str
    name: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        return [rest for held, rest in self.steps if held == word]


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instruction words with their arguments; comments gone, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\s*\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Arguments given before the first stage, and the stages."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for word, rest in instructions(text):
        if word == "FROM":
            base, *alias = rest.split()
            found.append(Stage(base, alias[1] if alias else ""))
        elif found:
            found[-1].steps.append((word, rest))
        elif word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
    return arguments, found


def faults(text: str) -> Iterator[str]:
    """What the image file does that it must not, or leaves out."""
    arguments, found = stages(text)
    names = {stage.name for stage in found}
    for stage in found:
        base = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m.group(1), ""), stage.base)
        if base in names:
            continue
        tag = base.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in base and not re.match(r"\d+\.\d+\.\d+", tag):
            yield f"base {base} is not pinned"
    last = found[-1]
    if len(found) < 2 or not any("--from=" in c for c in last.of("COPY")):
        yield "what builds is part of what runs"
    if any("pip install" in r or "apt-get" in r for r in last.of("RUN")):
        yield "the last stage installs packages"
    users = last.of("USER")
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield f"runs as {users[-1] if users else 'root'}, not as a numbered user"
    if users and last.steps.index(("USER", users[-1])) > min(
        [i for i, (word, _) in enumerate(last.steps) if word in ("ENTRYPOINT", "CMD", "HEALTHCHECK")], default=99
    ):
        yield "USER comes after what it is for"
    if not any("CMD" in h for h in last.of("HEALTHCHECK")):
        yield "no health check"
    for word in ("ENTRYPOINT", "CMD"):
        if not all(rest.startswith("[") for rest in last.of(word)) or not last.of(word):
            yield f"{word} is missing or runs in a shell"
    for stage in found:
        for word, rest in stage.steps:
            if REGISTRIES.search(rest):
                yield f"{word} names a registry: {rest[:60]}"
            if word == "ADD":
                yield "ADD may fetch and unpack; COPY does neither"
            if word in ("ENV", "ARG") and SECRETS.search(rest):
                yield f"{word} holds a secret: {rest.split('=')[0]}"
            if word == "COPY" and re.match(r"(--\S+ )*\.( |/$)", rest):
                yield "COPY takes everything that lies around"
            if word == "RUN" and "pip install" in rest and "--constraint" not in rest:
                yield "pip install without constraints"
            if word == "RUN" and "chmod 777" in rest:
                yield "a folder that everybody writes"
    homes = " ".join(last.of("ENV"))
    for name in ("HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        if not re.search(rf"\b{name}=/tmp", homes):
            yield f"{name} is not below /tmp, and the root may be read-only"
