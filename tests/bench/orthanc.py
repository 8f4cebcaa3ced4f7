"""A private Orthanc that has taken in some images, as a peer of several benchmarks."""

import http.client
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.support import LOCALHOST, connects, find_tool, free_port, running

CONNECTIONS: Final = 2
"""That stay open and ask beside each other: one for each processor of a small server."""


@contextmanager
def orthanc(folder: Path, images: Sequence[Path], without: frozenset[str]) -> Iterator[str]:
    """The address of its HTTP server; nothing if it is not here or not wanted."""
    tool = find_tool("Orthanc")
    if "orthanc" in without or tool is None:
        yield ""
        return
    folder.mkdir()
    port, web = free_port(), free_port()
    storage = str(folder / "storage")
    places = {"StorageDirectory": storage, "IndexDirectory": storage, "DicomPort": port, "HttpPort": web}
    doors = {"AuthenticationEnabled": False, "RemoteAccessAllowed": False, "WebDavEnabled": True}
    configuration = {**places, **doors, "Plugins": [], "DicomAlwaysAllowStore": True, "KeepAlive": True}
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    argv = [tool, str(folder / "orthanc.json")]
    ready = lambda: connects(port) and connects(web)  # noqa: E731  a def would say no more
    environment = {**os.environ, "TCP_NODELAY": "1"}
    with running(argv, folder / "log", ready, "Orthanc answers", seconds=60, env=environment):
        sender = ["storescu", "-aec", "ORTHANC", LOCALHOST, str(port), *map(str, images)]
        subprocess.run(sender, check=True, timeout=600, env=environment, capture_output=True)
        yield f"http://{LOCALHOST}:{web}"


def instances(url: str) -> list[str]:
    """Its names of all that it has."""
    return list(json.loads(next(_answers(url, ["/instances"]))))


def write_rendered(url: str, names: Sequence[str], target: Path) -> None:
    """Ask for the picture of each as JPEG, over `CONNECTIONS` connections, and write them as files."""
    target.mkdir(parents=True)
    paths = [f"/instances/{name}/rendered?quality=90" for name in names]
    parts = [range(start, len(paths), CONNECTIONS) for start in range(CONNECTIONS)]

    def work(part: range) -> None:
        for number, picture in zip(part, _answers(url, [paths[n] for n in part]), strict=True):
            (target / f"{number}.jpg").write_bytes(picture)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(work, parts))


def _answers(url: str, paths: Sequence[str]) -> Iterator[bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    try:
        for path in paths:
            connection.request("GET", path, headers={"Accept": "image/jpeg, application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.client.OK:
                raise RuntimeError(f"Orthanc answers {path} with {answer.status}: {body[:200]!r}")
            yield body
    finally:
        connection.close()
