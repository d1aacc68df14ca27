"""What leaves training: baked copies and ONNX files."""
