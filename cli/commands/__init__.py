"""One verb, one module; each holds a click command named ``command``."""
