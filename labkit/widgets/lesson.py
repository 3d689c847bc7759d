"""What lessons are made of besides widgets: the source of a few lines, and the way on to the next lesson."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from textwrap import dedent
from typing import Any

from labkit.errors import SettingError
from labkit.translation.translate import tr


@dataclass(frozen=True, repr=False)
class Source:
    """Python code that a notebook shows in colours, each line on one line."""

    code: str

    def __repr__(self) -> str:
        return self.code

    def _repr_html_(self) -> str:
        from IPython.display import Code

        html: str = Code(data=self.code, language="python")._repr_html_()
        look = "white-space:pre !important;overflow-x:auto;word-break:normal"
        return f'<style>.labkit-source pre{{{look}}}</style><div class="labkit-source">{html}</div>'


def source(*functions: Callable[..., Any]) -> Source:
    """The code of functions or methods alone: without indentation, decorators and docstrings.

    Raises SettingError for what was not written in Python.

    >>> source(source).code.splitlines()[0]
    'def source(*functions: Callable[..., Any]) -> Source:'
    """
    return Source("\n\n".join(map(_alone, functions)))


def _alone(function: Callable[..., Any]) -> str:
    try:
        text = dedent(inspect.getsource(inspect.unwrap(function)))
    except (TypeError, OSError):
        raise SettingError(f"{function!r} has no Python code to show; give a function or a method.") from None
    (node,) = ast.parse(text).body
    lines = text.splitlines()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        first = node.body[0]
        if ast.get_docstring(node) and len(node.body) > 1:
            del lines[first.lineno - 1 : first.end_lineno]
        lines = lines[node.lineno - 1 :]
    return "\n".join(lines).strip("\n")


# The browser itself asks its server, as the menu does: the kernel need not know the server's address or token.
_SCRIPT = """
const config = JSON.parse(document.getElementById('jupyter-config-data').textContent);
const here = decodeURIComponent(location.pathname), at = here.indexOf('/tree/');
const path = at < 0 ? '' : here.slice(at + 6), base = config.baseUrl || '/';
const token = (document.cookie.match(/_xsrf=([^;]*)/) || [])[1] || '';
const ask = (what, how) => fetch(base + what, {method: how, credentials: 'same-origin',
    headers: {'X-XSRFToken': token, ...(config.token ? {Authorization: 'token ' + config.token} : {})}});
this.disabled = true;
ask('api/sessions', 'GET').then(it => it.json()).then(all => Promise.all(
    all.filter(it => it.path === path).map(it => ask('api/sessions/' + it.id, 'DELETE'))
)).then(() => { location.href = base + 'lab/tree/' + path.split('/').slice(0, -1).concat([NEXT]).join('/'); })
"""


@dataclass(frozen=True, repr=False)
class GoOn:
    """A button that shuts this lesson's kernel down and opens the next lesson."""

    notebook: str

    def __repr__(self) -> str:
        return f"Shut down and go on to {self.notebook}"

    def _repr_html_(self) -> str:
        script = escape(" ".join(_SCRIPT.replace("NEXT", f"'{self.notebook}'").split()))
        return (
            f'<button type="button" class="jupyter-button mod-primary lm-Widget" onclick="{script}">'
            f"{escape(tr(f'Shut down and go on to {self.notebook}').removesuffix('.ipynb'))}</button>"
        )


def go_on(notebook: str) -> GoOn:
    """A button that ends this notebook's kernel, and with it its workers, and opens the next notebook in JupyterLab.

    What the notebook shows is kept, as it was saved last. Raises SettingError for what is no notebook's name.

    >>> go_on("02_splitting.ipynb")
    Shut down and go on to 02_splitting.ipynb
    """
    if (
        not isinstance(notebook, str)
        or not notebook.endswith(".ipynb")
        or not notebook.isprintable()
        or "'" in notebook
    ):
        raise SettingError(f"{notebook!r} is no notebook; give the name of a file beside this one, with .ipynb.")
    return GoOn(notebook)
