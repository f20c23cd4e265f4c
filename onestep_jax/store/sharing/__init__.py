"""A run as a data set of the hub: packed into files, sent, fetched, and made a run directory again."""
