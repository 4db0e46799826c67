"""Traces of smdebug: its directories read, written, and turned into ours; without TensorFlow or protobuf."""
