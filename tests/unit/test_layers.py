"""A module imports only modules above it, and third-party libraries only where they belong."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dicomfs

PACKAGE = Path(dicomfs.__file__).parent
ORDER = (
    "errors model config",
    "naming elements header",
    "attributes grey display window",
    "codestream pixels",
    "encode notice probes render",
    "archive index renditions ingest",
    "scp importer",
    "protocol worker workers cache",
    "tree present",
    "fuse mount",
    "samba service serve",
    "cli",
).__str__
