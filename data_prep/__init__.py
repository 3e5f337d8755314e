"""Video files -> manifest -> clip shards, on CPU machines and without torch."""
