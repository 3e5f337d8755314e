"""What the training programs read: clip shards, clips and token shards."""
