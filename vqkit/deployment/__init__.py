"""Trained models for inference: baked copies and ONNX files."""
