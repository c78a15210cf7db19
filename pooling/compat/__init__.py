"""Drop-in replacements for other pools: an application changes one import line."""
