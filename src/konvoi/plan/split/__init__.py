"""Inside an island: how each worker comes to its `Parts`. The written order stands in island.py."""
