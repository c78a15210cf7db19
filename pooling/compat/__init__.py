"""The faces of other pools, over ours: an application changes one import line."""
