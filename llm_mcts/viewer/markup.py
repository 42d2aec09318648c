"""HTML that is safe by construction: whatever is not `Markup` is text, and is escaped.

    element("p", "a < b", element("b", question), class_="note")

Questions and model texts are untrusted. Besides escaping, characters that no page can hold (controls, lone surrogates) are
replaced, characters that turn the direction of writing are shown as what they are, and the page's content policy forbids
scripts and requests altogether.
"""

import re
from html import escape

_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_DIRECTION = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_VOID = {"br", "meta"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Markup | None
"""None is left out; a str is escaped unless it is Markup."""


def plain(text: str) -> str:
    """`text` without what a page cannot show, and with changes of direction spelled out."""
    text = _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _DIRECTION.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def html(child: Child) -> Markup:
    """One child as HTML."""
    if child is None:
        return Markup("")
    return child if isinstance(child, Markup) else Markup(escape(plain(child), quote=True))


def join(*children: Child) -> Markup:
    """Children one after the other."""
    return Markup("".join(html(child) for child in children))


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element. In names of attributes a trailing "_" is dropped and others become "-"; None and False leave one out."""
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(name if value is True else f'{name}="{html(str(value))}"')
    opening = Markup(f"<{' '.join(parts)}>")
    return opening if tag in _VOID and not children else join(opening, *children, Markup(f"</{tag}>"))


def page(title: str, style: str, *body: Child) -> str:
    """A whole page that loads nothing. `style` is our own, never text from elsewhere."""
    head = join(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    return f"<!DOCTYPE html>\n{element('html', element('head', head), element('body', *body), lang='en')}\n"
