"""A module imports only modules above it, and third-party libraries only where they belong."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dicomfs"
SHOW = (
    *("protocol", "lengths", "worker", "workerprocess", "turns", "schedule", "workers", "twoqueue"),
    *("cache", "cachefolder", "diskcache", "gate", "inode", "entries", "aspect", "tree", "changes", "pools"),
    *("spans", "ahead", "follow", "stepping", "prefetch", "present", "view", "offline", "explain"),
    *("publish", "stalls", "callers", "pages", "folders", "fuse", "mount"),
)
"""What a mount is made of."""
ORDER = (
    *("errors", "logtext", "model", "recipes", "values", "remember", "naming", "spelling", "selection"),
    *("access", "peers", "scpoptions", "config"),
    *("activity", "figures", "slotfile", "runfile", "mountfile"),
    *("identity", "charset", "elements", "outline", "header"),
    *("attributes", "grey", "display", "histogram", "window", "bounded", "image"),
    *("codestream", "video", "pixels"),
    *("geometry", "icc", "planes", "subtraction", "frames", "measurement", "document"),
    *("encode", "notice", "marks", "probes", "render"),
    *("filemeta", "storage", "spool", "archive"),
    *("lock", "schema", "statement", "rows", "queries", "database"),
    *("owners", "retired", "writer", "indexfile", "index"),
    *("removal", "forget", "census", "renditionsfile", "renditions", "pressure"),
    *("service", "batch", "committer", "committerprocess", "lane", "ingest"),
    *("verify", "findings", "scrub", "plan", "reindex"),
    *("negotiation", "tls", "connection", "dimse", "messages", "handshake"),
    *("commitment", "commitments", "safekeeping", "reporter", "commitmentservice", "actions"),
    *("association", "scp", "importer"),
    *SHOW,
    *("samba", "serve", "forgetting"),
    *("status", "metrics", "statusview", "statuscommand", "maintenance"),
    *("exitcodes", "progress", "scpcommand", "servecommand", "filescommand"),
    "cli",
)
RECEIVE = {
    "removal",
    "forget",
    "pressure",
    "batch",
    "committer",
    "committerprocess",
    "lane",
    "ingest",
    "negotiation",
    "tls",
    "connection",
    "dimse",
    "messages",
    "handshake",
    "commitment",
    "commitments",
    "safekeeping",
    "reporter",
    "commitmentservice",
    "actions",
    "association",
    "scp",
    "importer",
}
PRESENT = {"render", "renditionsfile", "renditions", *SHOW} - {"workerprocess"}
BOTH = {"serve", "forgetting", "status", "metrics", "statusview", "statuscommand"}
BOTH |= {"servecommand", "filescommand", "cli"}
"""Where receiving and presenting may meet."""

CODECS = {"pixels", "codestream", "video"}
DRAWING = {"encode", "geometry", "icc", "marks", "notice", "planes", "pixels", "probes", "render"}
GREY = {"display", "frames", "grey", "histogram", "lengths", "measurement", "subtraction", "window"} | DRAWING
HEADERS = {"attributes", "bounded", "display", "document", "geometry", "header", "icc", "image"}
HEADERS |= {"marks", "planes"}
HOME = {
    "PIL": DRAWING,
    "av": {"video"},
    "cachetools": {"cache", "pages", "twoqueue"},
    "gdcm": CODECS,
    "jpeg_ls": CODECS,
    "libjpeg": CODECS,
    "numpy": GREY | {"video"},
    "openjpeg": CODECS,
    "pydicom": {"archive", "charset", "negotiation", "handshake", "association", "subtraction", "probes"}
    | {"render", "commitment", "safekeeping", "reporter", "actions"}
    | HEADERS
    | CODECS,
    "pyfuse3": {"folders", "fuse", "mount"},
    "prometheus_client": {"metrics"},
    "pylibjpeg": CODECS,
    "pynetdicom": {"handshake", "scp"},
    "rich": {"cli", "progress"},
    "sqlalchemy": {"schema", "statement", "queries", "database", "owners", "retired", "writer"}
    | {"indexfile", "index", "removal", "census"}
    | {"renditionsfile", "commitments"},
    "trio": {"workerprocess", "workers", "cache", "pools", "ahead", "follow", "present", "view", "offline"}
    | {"schedule", "publish", "folders", "fuse", "mount", "stalls", "callers", "prefetch", "diskcache"},
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["dicomfs" if node.level else "", node.module or ""]))
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "dicomfs" else [base]
            yield from ((node.lineno, name) for name in names)


def own(module: str) -> dict[str, int]:
    """Modules of the package that a module imports, and where; `__version__` and the like are not modules."""
    parts = ((line, name.split(".")) for line, name in imports(module))
    return {part[1]: line for line, part in parts if part[0] == "dicomfs" and part[1:] and part[1] in ORDER}


def test_every_module_has_its_place() -> None:
    assert set(MODULES) == set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_upwards(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert {name: line for name, line in own(module).items() if name not in above} == {}


@pytest.mark.parametrize("module", sorted((RECEIVE | PRESENT) & set(MODULES)))
def test_receiving_and_presenting_never_meet(module: str) -> None:
    other = PRESENT if module in RECEIVE else RECEIVE
    assert {name: line for name, line in own(module).items() if name in other | BOTH} == {}


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_at_home(module: str) -> None:
    tops = {name.split(".")[0]: line for line, name in imports(module)}
    foreign = {name: line for name, line in tops.items() if name not in sys.stdlib_module_names | {"dicomfs"}}
    assert {name: line for name, line in foreign.items() if module not in HOME.get(name, set())} == {}
