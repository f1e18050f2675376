"""``./scripts/deploy``: a new version on many machines, over ssh, without taking them all down at once."""
