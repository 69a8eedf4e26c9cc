"""One run on disk: the study contract, its directory, records, provenance, progress, tracking, processes."""
