"""A bucket of moto's server of S3, on this machine."""

from __future__ import annotations

import contextlib

from tests.support import parts
from tests.support.optional import need


@contextlib.contextmanager
def serving_bucket(name, *, secret="hush"):
    """Yield the storage options that reach an empty bucket, and boto3's client of it."""
    need("s3fs", "moto")
    parts.check("server")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
        client = boto3.client(
            "s3", aws_access_key_id="someone", aws_secret_access_key=secret, **address
        )
        client.create_bucket(Bucket=name)
        yield {"key": "someone", "secret": secret, "client_kwargs": address}, client
    finally:
        server.stop()
