"""URLs, read without a request: those of DICOMweb services, and those of one origin."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

__all__ = ["MOST_REDIRECTS", "WebUrl", "is_dicomweb_url", "is_same_origin", "is_within",
           "parse_web_url", "redirect_of", "service_of", "services_above"]  # fmt: skip

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
_PORTS = {"http": 80, "https": 443}
MOST_REDIRECTS = 5
"""Upper bound on the redirects that a request follows."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class WebUrl(NamedTuple):
    """A service, and the study or series of it that a URL names, if any."""

    service: str
    study: str | None
    series: str | None


def is_dicomweb_url(text: str) -> bool:
    """Whether a text is the URL of a DICOMweb service, of a study of it or of a series.

    The scheme is ``dicomweb+https``. Without ``dicomweb+``, a URL is recognised by ``/studies/``
    and a UID in its path.
    """
    return text.startswith(URL_SCHEME) or _PART_OF_SERVICE.fullmatch(text) is not None


def parse_web_url(text: str) -> WebUrl | None:
    """Return the parts of the URL of a service, study or series; None for any other text."""
    match = _URL.fullmatch(text.removeprefix(URL_SCHEME))
    if match is None or "/studies" in match["service"]:
        return None
    return WebUrl(match["service"], match["study"], match["series"])


def service_of(url: str) -> str:
    """Return the URL of a service in its normal form, without the path of a study or series."""
    scheme, colon, rest = url.removeprefix(URL_SCHEME).partition("://")
    host, slash, path = rest.partition("/")
    scheme, host = scheme.lower(), host.lower()
    host = host.removesuffix(f":{_PORTS[scheme]}" if scheme in _PORTS else "")
    path = f"{slash}{path}/".partition("/studies/")[0]
    return f"{scheme}{colon}{host}{path}".rstrip("/")


def services_above(url: str) -> list[str]:
    """Return the service of a URL, and the URLs that it begins with up to its host."""
    service = service_of(url)
    start = service.find("://") + 3
    cuts = [at.start() for at in re.finditer("/", service) if at.start() > start]
    return [service, *(service[:cut] for cut in reversed(cuts))]


def is_within(url: str, prefix: str) -> bool:
    """Whether the service of a URL is that of `prefix`, or lies below it."""
    return service_of(prefix) in services_above(url)


# -- origins ---------------------------------------------------------------------------------


def is_same_origin(url: str, home: str) -> bool:
    """Whether credentials for one URL may be sent to another.

    They may where scheme, host and port are the same, and from a server's port for HTTP to that
    for HTTPS.
    """
    try:
        at, own = _origin(url), _origin(home)
    except ValueError:  # a port that is no number, an invalid address
        return False
    is_upgrade = own == ("http", own[1], 80) and at == ("https", own[1], 443)
    return at == own or is_upgrade


def _origin(url: str) -> tuple[str | None, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def redirect_of(url: str, status: int, location: str | None) -> str | None:
    """Return the URL that the answer to a request redirects to; None where it doesn't.

    Raises
    ------
    ValueError
        When it isn't a valid URL of HTTP.

    """
    if status not in _REDIRECTS or not location:
        return None
    target = urljoin(url, location)
    try:
        scheme, host, _ = _origin(target)
    except ValueError:  # its text would quote the URL
        scheme = host = None
    if scheme not in _PORTS or not host:
        raise ValueError("a redirect to an invalid URL")
    return target
