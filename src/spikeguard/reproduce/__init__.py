"""The experiments of the paper on TGO, and results that are measured again."""
