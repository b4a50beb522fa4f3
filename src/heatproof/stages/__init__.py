"""The steps of a run, one file each: thin, in order, resumable."""
