"""Keras image classifier to signed-off int8 ONNX package. The only code importing tensorflow, keras, tf2onnx, onnx."""
