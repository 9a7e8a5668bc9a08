"""The drive that one writes in an afternoon: Flask, a form's file read whole into memory, written to two folders.

Runs in the peers' environment, by gunicorn with threads. The folder comes from BENCH_NAIVE_FOLDER.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask, jsonify, request, send_file

app = Flask(__name__)
FOLDERS = [Path(os.environ["BENCH_NAIVE_FOLDER"]) / name for name in ("a", "b")]


@app.post("/upload/<folder>")
def upload(folder: str) -> Any:
    given = request.files["file"]
    data = given.read()
    for root in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / str(given.filename)).write_bytes(data)
    return jsonify(size=len(data)), 201


@app.get("/files/<folder>")
def files(folder: str) -> Any:
    return jsonify(
        [{"name": path.name, "size": path.stat().st_size} for path in (FOLDERS[0] / folder).iterdir()]
    )


@app.get("/files/<folder>/<name>")
def download(folder: str, name: str) -> Any:
    return send_file(FOLDERS[0] / folder / name)


@app.delete("/files/<folder>/<name>")
def delete(folder: str, name: str) -> Any:
    for root in FOLDERS:
        (root / folder / name).unlink()
    return "", 204
