"""The HTTP service. No tensorflow, no onnx, no knowledge of convert or perf."""

import os

# ONNX Runtime reports to its maker from import on, and leaves files in TMPDIR (its pull request 27379): not from here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
