# SPDX-License-Identifier: Apache-2.0
"""Opens a session in an S3-compatible store: which of its files may be read, and where they are.

Never read a folder by `*.parquet`: while a session runs, and after a node was lost in the middle of it, there are files
that nobody vouches for yet. What the manifest with the highest number lists is the session, each file once:

    _tracelake/manifest-<n>.json -> _tracelake/<node>_<boot>.json of each node -> <table>/<node>_<boot>_<seq>.parquet

The store is the one that the AWS variables name: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import json
import os
import re

import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet

FORMAT_VERSION = 1  # of the layout; a higher one is not for this code


def store():
    """The store, as a file system of pyarrow. Credentials are found as every AWS client finds them."""
    options = {"region": os.environ.get("AWS_REGION", "us-east-1")}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options["scheme"], options["endpoint_override"] = endpoint.rstrip("/").split("://")
    return pyarrow.fs.S3FileSystem(**options)


class Session:
    """The session in the folder `s3://bucket/prefix/namespace/name/uid`."""

    def __init__(self, url):
        self.url, self.store = url.rstrip("/"), store()
        self.folder = self.url.removeprefix("s3://")
        selector = pyarrow.fs.FileSelector(f"{self.folder}/_tracelake", allow_not_found=True)
        names = [file.base_name for file in self.store.get_file_info(selector)]
        numbers = [int(found[1]) for name in names if (found := re.fullmatch(r"manifest-(\d+)\.json", name))]
        if not numbers:
            raise LookupError(f"{url} has no manifest: the session still runs, or this is no session's folder")
        self.manifest = self._json(f"_tracelake/manifest-{max(numbers)}.json")
        self._keys, self._last, self._agents = {}, {}, set()
        for node in self.manifest["nodes"]:
            for name in node["manifests"]:
                manifest = self._json(name)
                self._agents.update(one["agentVersion"] for one in manifest["incarnations"])
                for file in manifest["objects"]:
                    table = file["key"].split("/")[0]
                    self._keys.setdefault(table, {})[file["key"]] = None  # a dict: each file once, in order
                    self._last.setdefault(table, {})[name] = file["key"]

        self.tables = sorted(self._keys)  # those that rows were written to

    def _json(self, key):
        with self.store.open_input_stream(f"{self.folder}/{key}") as file:
            value = json.load(file)
        if value["formatVersion"] > FORMAT_VERSION:
            raise ValueError(f"{self.url}/{key} is of format {value['formatVersion']}: use examples of a newer version")
        return value

    def files(self, table):
        """The URLs of a table's files. The first has all columns; others lack some if an agent was upgraded meanwhile."""
        if table not in self._keys:
            raise LookupError(f"{self.url} has no rows of {table}, only of {', '.join(self.tables)}")
        last = list(self._last[table].values())  # of each node; columns are only ever added
        widest = max(last, key=self._columns) if len(self._agents) > 1 else last[-1]
        return [f"{self.url}/{key}" for key in [widest, *(key for key in self._keys[table] if key != widest)]]

    def _columns(self, key):
        return len(pyarrow.parquet.read_schema(f"{self.folder}/{key}", filesystem=self.store))

    def dataset(self, table):
        """The same files as one dataset of pyarrow, which also DuckDB reads."""
        files = [url.removeprefix("s3://") for url in self.files(table)]
        return pyarrow.dataset.dataset(files, filesystem=self.store, format="parquet")

    def summary(self):
        """What to know before believing an answer: whether all nodes delivered, and what was lost."""
        totals = self.manifest["totals"]
        lost = {term: events for term, events in totals["terms"].items() if term.startswith("lost_") and events}
        missing = {node["node"]: node["reason"] for node in self.manifest["nodes"] if node["reason"]}
        return {
            "verdict": self.manifest["verdict"],
            "nodes_not_complete": missing,
            "rows": totals["rows"],
            "events_lost": lost,
            "events_unknown": totals["unknown"],  # an agent crashed, and its last counts with it
        }
