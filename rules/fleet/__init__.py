"""Many runs: judged in several processes or on a cluster, kept, and summed up."""
