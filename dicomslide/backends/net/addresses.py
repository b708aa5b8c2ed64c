"""What URLs of DICOMweb services look like; nothing is requested to know one."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["WebUrl", "is_dicomweb_url", "is_within", "parse_web_url", "service_of"]

URL_SCHEME = "dicomweb+"
_URL = re.compile(
    r"(?P<service>https?://[^/\s]+(?:/\S*?)??)"
    r"(?:/studies/(?P<study>[\d.]+)(?:/series/(?P<series>[\d.]+))?)?/?"
)
_PART_OF_SERVICE = re.compile(
    r"https?://[^?#]*/studies/[\d.]+(?:/series/[\d.]+(?:/instances/[\d.]+)?)?"
    r"(?:/(?:series|instances|metadata|rendered|thumbnail|frames/[\d,]+))?/?(?:[?#].*)?",
    re.IGNORECASE,
)
_PORTS = {"http": ":80", "https": ":443"}


class WebUrl(NamedTuple):
    """A service, and what is meant of it: all, a study or a series."""

    service: str
    study: str | None
    series: str | None


def is_dicomweb_url(text: str) -> bool:
    """Whether a text is the URL of a DICOMweb service, of a study of it or of a series.

    The scheme is ``dicomweb+https``. Without ``dicomweb+``, that of a study is known by its path.
    """
    return text.startswith(URL_SCHEME) or _PART_OF_SERVICE.fullmatch(text) is not None


def parse_web_url(text: str) -> WebUrl | None:
    """Return what the URL of a service, study or series names; None where it is no such URL."""
    match = _URL.fullmatch(text.removeprefix(URL_SCHEME))
    if match is None or "/studies" in match["service"]:
        return None
    return WebUrl(match["service"], match["study"], match["series"])


def service_of(url: str) -> str:
    """Return the URL of a service, written in one way, without what is asked of it."""
    scheme, colon, rest = url.removeprefix(URL_SCHEME).partition("://")
    host, slash, path = rest.partition("/")
    scheme, host = scheme.lower(), host.lower()
    host = host.removesuffix(_PORTS.get(scheme, ""))
    path = f"{slash}{path}/".partition("/studies/")[0]
    return f"{scheme}{colon}{host}{path}".rstrip("/")


def is_within(url: str, prefix: str) -> bool:
    """Whether a service is that of another URL, or its URL goes on where the other ends."""
    return f"{service_of(url)}/".startswith(f"{service_of(prefix)}/")
