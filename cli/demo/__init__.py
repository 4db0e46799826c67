"""Real training runs, healthy and faulty, for `stepwatch demo`."""
