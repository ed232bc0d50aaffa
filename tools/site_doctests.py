"""An extension of the reference's reader: the examples of docstrings (``>>>``) become blocks of code."""

import re

from griffe import Extension, Object

EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*(?:^\n(?=>>> ))?)+", re.M)


class Doctests(Extension):
    """Fences every run of lines that starts with ``>>>`` and ends at an empty line."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(
                lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value
            )
