"""Several processes as one run: who started them, sharded weights, Lightning's strategies."""
