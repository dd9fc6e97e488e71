"""The one error that means "you, not the program": a wrong name, value, file or device."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Wrong use. The message names the field, the value and what is allowed; the command line exits with status 2."""


class LabelsMissing(UsageError):
    """The data has no labels and the evaluation needs them: `train` then ends without one, everything else refuses."""


class Diverged(UsageError, FloatingPointError):
    """A term of the objective became NaN or infinite; the message names the term and the step."""


def nearest(name: str, allowed: Iterable[str], what: str = "name") -> str:
    """The sentence that helps with a misspelt name.

    Examples:
        >>> nearest("simclrr", ["simclr", "dgi"], "method")
        "unknown method 'simclrr'; nearest: simclr; known: dgi, simclr"
    """
    known = sorted(allowed)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    parts = [f"unknown {what} {name!r}"]
    if near:
        parts.append("nearest: " + ", ".join(near))
    parts.append("known: " + (", ".join(known) if known else "none"))
    return "; ".join(parts)
