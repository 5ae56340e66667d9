"""Members in shards: each process holds a part of every weight, by torch's `fully_shard` under its launcher."""
