"""A DICOMweb server and its client in one object, over the files of a folder."""

from __future__ import annotations

import fnmatch
import itertools
import json
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from dicomslide.header.layout import pixel_format_of
from dicomslide.pixels import DECODERS, decode_frame

BULK = ("00282000",)  # ICC Profile
FILTERS = ("PatientID", "StudyID", "StudyDate", "AccessionNumber", "ContainerIdentifier")
_numbers = itertools.count()


def refused(status):
    import requests

    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(
        f"{status} for url: http://u:secret@host/x?token=secret", response=response
    )


class FakeClient:
    """Serves files as a DICOMweb server does: JSON metadata, frames, whole instances.

    Parameters
    ----------
    folder : pathlib.Path
        Where the files are.
    accepts : callable, optional
        Whether media types are accepted; 406 if not.
    send : callable, optional
        Changes the frames of a reply, given them and their indices.
    transcodes : bool, default: False
        Whether frames are decoded before they are sent.
    page : int, optional
        Most results of a search.
    offsets : bool, default: True
        Whether searches know an offset.
    bulk : bool, default: True
        Whether ICC profiles are bulk data.
    filters : iterable of str, optional
        Filters of searches that it knows; it ignores others.
    shows : bool, default: True
        Whether results show the values by which they were found.

    """

    scheme = "https"
    protocol = "https"
    url_prefix = "/dicom-web"
    qido_url_prefix = wado_url_prefix = stow_url_prefix = delete_url_prefix = None

    def __init__(self, folder, *, accepts=None, send=None, transcodes=False, page=None,
                 offsets=True, bulk=True, base_url=None, filters=FILTERS, shows=True):  # fmt: skip
        # another server each time: this process remembers what it has read from one
        self.base_url = base_url or f"https://u:secret@host{next(_numbers)}/dicom-web?token=secret"
        self.folder = Path(folder)
        self.datasets = {}
        for path in sorted(Path(folder).rglob("*.dcm")):
            dataset = pydicom.dcmread(path)
            self.datasets[str(dataset.SOPInstanceUID)] = dataset
        self.accepts = accepts or (lambda media_types: True)
        self.send = send or (lambda frames, indices: frames)
        self.transcodes = transcodes
        self.page = page
        self.offsets = offsets
        self.bulk = bulk
        self.filters = {"StudyInstanceUID", "SeriesInstanceUID", "Modality", *filters}
        self.shows = shows
        self.calls = []

    # -- searching --

    def _search(self, keyword, keys, limit, offset, search_filters=None, **where):
        self.calls.append(("search", keyword, offset))
        wanted = dict(search_filters or {}) | where
        found = {}
        for dataset in self.datasets.values():
            if all(self._matches(dataset, k, v) for k, v in wanted.items() if k in self.filters):
                result = pydicom.Dataset()
                for key in (*keys, *(self.filters & wanted.keys() if self.shows else ())):
                    setattr(result, key, dataset.get(key))
                found.setdefault(dataset.get(keyword), result.to_json_dict())
        results = list(found.values())
        results = results[offset or 0 :] if self.offsets else results
        return results[: min(limit or 10**6, self.page or 10**6)]

    @staticmethod
    def _matches(dataset, keyword, wanted):
        """Whether a data set has a value, by ranges of dates and wildcards (PS3.4 C.2.2.2)."""
        value = str(dataset.get(keyword, ""))
        if keyword == "StudyDate" and "-" in wanted:
            first, last = wanted.split("-")
            return bool(value) and first <= value <= (last or "9")
        return fnmatch.fnmatchcase(value, wanted.replace("[", "[[]"))

    def search_for_studies(self, limit=None, offset=None, search_filters=None):
        return self._search("StudyInstanceUID", ["StudyInstanceUID"], limit, offset, search_filters)

    def search_for_series(
        self, study_instance_uid=None, limit=None, offset=None, search_filters=None
    ):
        where = {} if study_instance_uid is None else {"StudyInstanceUID": study_instance_uid}
        keys = ["StudyInstanceUID", "SeriesInstanceUID", "Modality"]
        return self._search(keys[1], keys, limit, offset, search_filters, **where)

    def search_for_instances(
        self, study_instance_uid=None, limit=None, offset=None, search_filters=None
    ):
        where = {} if study_instance_uid is None else {"StudyInstanceUID": study_instance_uid}
        keys = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality"]
        return self._search(keys[2], keys, limit, offset, search_filters, **where)

    # -- metadata --

    def _json(self, dataset):
        copy = pydicom.Dataset()
        copy.update({tag: dataset[tag] for tag in dataset.keys() if tag.group != 0x7FE0})  # noqa: SIM118
        found = json.loads(copy.to_json())
        if self.bulk:
            self._cut(found, f"http://inner/dicom-web/studies/{dataset.SOPInstanceUID}")
        return found

    def _cut(self, found, path):
        for tag, element in found.items():
            for number, item in enumerate(element.get("Value", [])):
                if element["vr"] == "SQ":
                    self._cut(item, f"{path}/{tag}/{number}")
            if tag in BULK:
                del element["InlineBinary"]
                element["BulkDataURI"] = f"{path}/{tag}"

    def retrieve_instance_metadata(self, study, series, instance):
        self.calls.append(("metadata", instance))
        return self._json(self.datasets[instance])

    def retrieve_series_metadata(self, study, series):
        self.calls.append(("series metadata", series))
        return [self._json(d) for d in self.datasets.values() if d.SeriesInstanceUID == series]

    def metadata(self, instance):
        """Metadata as a user of the documented API gets them."""
        return pydicom.Dataset.from_json(self._json(self.datasets[instance]), lambda uri: b"")

    def all_metadata(self):
        return [self.metadata(instance) for instance in self.datasets]

    def retrieve_bulkdata(self, url, media_types=None, byte_range=None):
        self.calls.append(("bulk data", url))
        path = url.split("/studies/")[1].split("/")
        item = self.datasets[path[0]]
        for tag, number in zip(path[1:-1:2], path[2:-1:2], strict=True):
            item = item[int(tag, 16)].value[int(number)]
        return [item[int(path[-1], 16)].value]

    # -- pixels --

    def retrieve_instance(self, study, series, instance, media_types=None):
        self.calls.append(("instance", instance))
        return self.datasets[instance]

    def retrieve_instance_frames(self, study, series, instance, frame_numbers, media_types=None):
        self.calls.append(("frames", instance, list(frame_numbers), media_types))
        if not self.accepts(media_types):
            raise refused(406)
        indices = [number - 1 for number in frame_numbers]
        frames = self.frames(instance)
        return self.send([frames[index] for index in indices], indices)

    def frames(self, instance):
        dataset = self.datasets[instance]
        uid = str(dataset.file_meta.TransferSyntaxUID)
        pixel_format = pixel_format_of(dataset)
        count = int(dataset.get("NumberOfFrames", 1))
        if "FloatPixelData" in dataset:
            raise refused(400)
        if not DECODERS[uid].encapsulated:
            size = pixel_format.native_bits // 8
            data = dataset.PixelData
            if not DECODERS[uid].little_endian:  # servers send little endian
                data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
            return [data[i * size : (i + 1) * size] for i in range(count)]
        frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
        if self.transcodes:
            return [decode_frame(frame, pixel_format, uid).tobytes() for frame in frames]
        return frames
