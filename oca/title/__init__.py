"""The title on disk: what it consists of, its digests, its segment indexes, its manifests."""
