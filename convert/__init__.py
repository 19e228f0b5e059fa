"""Keras image classifier to signed-off int8 ONNX package. The only code importing tensorflow, keras, tf2onnx, onnx."""

import os

# ONNX Runtime reports to its maker from import on, and leaves files in TMPDIR (its pull request 27379): not from here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
