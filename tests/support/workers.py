"""A cluster of dask's, as tests start it."""

from __future__ import annotations

import contextlib

from tests.support import parts


@contextlib.contextmanager
def some_workers(number, *, is_default=True, **options):
    """Yield the client of processes with a thread each; options are those of LocalCluster."""
    from distributed import Client, LocalCluster

    parts.check("cluster")
    with (
        LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            # None is port 8787, which another cluster of this machine may have: that is a warning
            dashboard_address="127.0.0.1:0",
            **options,
        ) as cluster,
        Client(cluster, set_as_default=is_default) as client,
    ):
        yield client
