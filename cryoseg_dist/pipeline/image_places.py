"""Where images lie that tables and patterns name: only where they may."""

from collections.abc import Sequence
from pathlib import Path

from cryoseg_dist.errors import BadInputError

# Characters of a strange name that are repeated.
SHOWN = 80


def allowed(path: Path, roots: Sequence[Path]) -> Path:
    """The path itself, if it lies in one of some folders once links are followed; any path where there are none.

    Raises
    ------
    BadInputError
        It lies elsewhere.
    """
    if roots and not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        raise BadInputError(
            str(path),
            f"images in {', '.join(map(str, roots))}",
            f"one in {path.resolve().parent}",
            "data.image_roots lists where images may lie.",
        )
    return path


def find_image(name: str, folder: Path, roots: Sequence[Path] = ()) -> Path | None:
    """The file of a name in a folder or the nearest one above it, as names in a RELION project start from the project.

    Absolute names are taken as they are. None where there is no such file.

    Raises
    ------
    BadInputError
        A relative name that climbs out of its project, or a file where none may lie.
    """
    if not name.isprintable():
        raise BadInputError(repr(name[:SHOWN]), "the name of a file", "one with control characters")
    if ".." in Path(name).parts:
        raise BadInputError(
            repr(name[:SHOWN]),
            "a name from the project's folder, or an absolute one",
            "one that climbs with ..",
            "Correct the table.",
        )
    start = folder.absolute()
    for place in (start, *start.parents):
        try:
            found = (place / name).is_file()
        except (OSError, ValueError) as fault:
            raise BadInputError(repr(name[:SHOWN]), "the name of a file", str(fault)[:SHOWN]) from None
        if found:
            return allowed(place / name, roots)
    return None
