"""Traces of torch.profiler (Kineto), made by us or elsewhere: read, and summarised. No torch."""
