"""Write a source's images as shards that `shards` reads: as they are, or smaller."""
