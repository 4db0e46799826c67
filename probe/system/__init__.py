"""Use of the node, of the job's processes and of its GPUs: one module per source."""
