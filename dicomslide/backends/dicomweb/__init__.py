"""DICOMweb servers (PS3.18).

``source``
    One instance on a server: `DicomWebSource`.
``client``
    Clients and URLs: the instances that they find.
``connection``, ``negotiation``
    A client or URL in this process: requests for frames and metadata, and the media types that the
    server supports.
``service``, ``transport``, ``bodies``, ``multipart``
    Requests, replies and their checks.
``dicom_json``
    Conversion of DICOM JSON to data sets.
``protocol``, ``failures``
    The interface of clients, and the errors of servers.
"""
