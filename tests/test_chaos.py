"""Every fault at random, before two servers: pixels that are right, or an error in words.

A few seconds here, always the same faults; ``DICOMSLIDE_CHAOS_SECONDS=600`` makes it as long as
that, and ``python -m tests.support.chaos 600`` does the same without pytest.
"""

from __future__ import annotations

import os

import pytest

from tests.support import chaos
from tests.support.parts import starts

SECONDS = float(os.environ.get("DICOMSLIDE_CHAOS_SECONDS", 0))


@pytest.fixture(scope="module")
@starts("server")
def found(tmp_path_factory):
    with chaos.servers(tmp_path_factory.mktemp("chaos")) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faulty_server", "Orthanc"])
def test_nothing_is_wrong_raw_or_hung_whatever_a_server_sends(found, tmp_path, name):
    urls, slides = found
    if name not in urls:
        pytest.skip("Orthanc isn't installed")
    reads = None if SECONDS else 12
    figures, played = chaos.run(
        urls[name], slides, SECONDS or 60.0, 7, folder=tmp_path / "kept", reads=reads
    )
    assert figures.is_good, f"{figures}\n{''.join(figures.shown)}"
    assert played
