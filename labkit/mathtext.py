"""Mathtext: LaTeX as matplotlib sets it, which knows less of it than a browser does."""

from __future__ import annotations

import re

_KNOWN = (  # what matplotlib does not know, and what comes nearest
    (r"\\[bB]ig(?![a-zA-Z])", ""),
    (r"\\bmod(?![a-zA-Z])", r"\\;\\mathrm{mod}\\;"),
    (r"\\[td]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\[td]frac(?![a-zA-Z])", r"\\frac"),
)


def mathtext(latex: str) -> str:
    r"""The formula with what matplotlib knows, between dollar signs.

    >>> print(mathtext(r"\tfrac12 x \bmod 2"))
    $\frac{1}{2} x \;\mathrm{mod}\; 2$
    """
    for pattern, known in _KNOWN:
        latex = re.sub(pattern, known, latex)
    return f"${latex}$"
