"""Texts, URLs and errors without credentials: whatever is shown, pickled or logged passes here."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["cause_of", "has_hidden_query", "is_harmless", "public", "public_url", "said",
           "secrets_of"]  # fmt: skip

_USER = re.compile(r"(?<=://)[^/?#@:\s]*:[^/?#\s]*@|(?<=http://)[^/?#\s]*@|(?<=https://)[^/?#\s]*@")
"""User and password of a URL; a user alone may be part of the name of an object."""
_ANY_USER = re.compile(r"(?<=//)[^/\s]+@")
"""The same in a text, where rather too much is left out."""
_QUERY = re.compile(r"(?<=\S)[?#](?!query-[0-9a-f]{12}\b)[^\s<>]+")
"""Query or fragment of a URL in a text, unless it is a digest."""
_DIGEST = re.compile(r"query-[0-9a-f]{12}")


def public(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without users, passwords and queries of URLs, and without known secrets."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _QUERY.sub("", _ANY_USER.sub("", text))


def public_url(url: str) -> str:
    """Return a URL without what may be a credential: user and password, and an HTTP query.

    A digest stands for the query, which may be all that tells two objects apart. A public URL is
    returned unchanged.
    """
    return "::".join(_public_link(link) for link in url.split("::"))


def _public_link(link: str) -> str:
    shown = _USER.sub("", link)
    if shown.startswith(("http://", "https://")):
        shown, mark, query = shown.partition("?")
        if mark:
            is_public = _DIGEST.fullmatch(query) is not None
            digest = hashlib.sha256(query.encode()).hexdigest()[:12]
            shown += f"?{query}" if is_public else f"?query-{digest}"
    return shown


def has_hidden_query(url: str) -> bool:
    """Whether a digest stands for the query of a URL, or of a link of a chained one."""
    return any(_DIGEST.fullmatch(link.partition("?")[2]) for link in url.split("::"))


def secrets_of(url: str) -> list[str]:
    """Return the parts of a URL that may be credentials."""
    parts = [found.group()[:-1] for found in _USER.finditer(url)]
    parts += [part.partition(":")[2] for part in parts]
    return parts + [link.partition("?")[2] for link in url.split("::") if "?" in link]


def said(error: BaseException) -> str:
    """Return the type and message of an error, without credentials of URLs and header values."""
    text = str(error)
    text, bad_header, _ = f"{type(error).__name__}{': ' if text else ''}{text}".partition(
        "header value"
    )
    return public(text + bad_header)


def is_harmless(error: BaseException) -> bool:
    """Whether an error, apart from its causes, holds and says no credentials."""
    return not getattr(error, "request", None) and said(error).endswith(str(error))


def cause_of(error: BaseException) -> BaseException | None:
    """Return an error that may be the cause of another one; None where it may hold credentials.

    Errors of requests hold the request, with its headers, and dask pickles the causes of errors.
    """
    each: BaseException | None = error
    while each is not None:
        if not is_harmless(each):
            return None
        each = each.__cause__ or each.__context__
    return error
